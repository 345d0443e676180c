//! L2 as a storage: over simulated flash under any schedule, and over a real file on a shard. In both modes of a
//! namespace, since they remove differently.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use engine::{
    device::{
        Device,
        file::FileDevice,
        sim::{Faults, Medium},
    },
    log::{
        self, Log,
        supersede::{NoteStore, RING_SLOTS, RingFile, RingMemory},
    },
    rt::{Rt, sim::Sim},
};
use serde_json::json;
use strata::{
    cache::Tier,
    namespace::{Namespaces, Registry},
    policy::{Policy, VersionedPolicy},
    storage::flash::{FlashTier, keep},
    version::VersionClock,
};

use crate::{
    storage::{Caps, pressed, suite},
    support::{Timed, disk, on_shard},
};

/// Room for the largest walk of the suite and its dead copies, and for bodies of a quarter of it.
pub(crate) const LOG_BYTES: u64 = 16 << 20;

/// A log that laps.
pub(crate) const SMALL_LOG_BYTES: u64 = (16 << 10) + 10 * (64 << 10);

pub(crate) const MODES: [&str; 2] = ["durable", "cache_only"];

/// The namespaces that the suite writes to, of one mode. RAM takes bodies up to 20 kB, a network cache up to 50 kB and
/// flash, where L3 is below it, up to 200 kB, so that the suite's own sizes are on either side.
pub(crate) fn namespaces(mode: &str) -> Rc<Namespaces> {
    let space = json!({"mode": mode});
    let spaces = json!({"ns": space, "any_bytes-1": space, "any_bytes-2": space});
    let l2_max = if mode == "durable" { json!(200_000) } else { json!("none") };
    let policy = json!({"l0_max": 20_000, "l1_max": 50_000, "l2_max": l2_max, "namespaces": spaces});
    let policy = Arc::new(Policy::from_json(&policy).expect("a good policy"));
    Rc::new(Namespaces::new(Registry::new(), VersionedPolicy { version: 1, policy }))
}

/// A tier over a log that was never used before.
pub(crate) async fn fresh<D: Device, R: Rt>(
    device: D,
    rt: &R,
    notes: impl NoteStore,
    versions: &VersionClock,
    namespaces: &Rc<Namespaces>,
) -> FlashTier<D, R> {
    let config = log::Config {
        // Ten of them in a small log, so that it laps.
        segment_bytes: (device.len() == SMALL_LOG_BYTES).then_some(64 << 10),
        flush_interval: Duration::from_millis(20),
        buffer_bytes_max: 256 << 10,
        object_bytes_mean: 1 << 10,
        ..log::Config::new(7, [1; 16])
    };
    let (log, opened) = Log::open(Rc::new(device), rt.clone(), notes, config, keep).await.expect("opens");
    assert!(opened.is_new);
    FlashTier::new(log, rt.clone(), versions.clone(), namespaces.clone())
}

fn caps() -> Caps {
    Caps { counts_expired: true, arbitrates: false, ..Caps::cache(Tier::L2) }
}

#[test]
fn the_flash_tier_is_a_storage_under_any_schedule() {
    for (seed, mode) in [0, 1, 2].into_iter().flat_map(|seed| MODES.map(|mode| (seed, mode))) {
        let sim = Sim::new(seed);
        let rt = Timed::over(sim.rt());
        let faults = Faults { latency: (Duration::from_micros(50), Duration::from_millis(3)), ..Faults::default() };
        let make = async || {
            let device = Medium::new(LOG_BYTES, seed).open(rt.clone(), faults);
            fresh(device, &rt, RingMemory::new(64), &VersionClock::new(1), &namespaces(mode)).await
        };
        sim.block_on(suite(make, rt.clock(), caps()));
        let small = async || {
            let device = Medium::new(SMALL_LOG_BYTES, seed).open(rt.clone(), faults);
            fresh(device, &rt, RingMemory::new(8), &VersionClock::new(1), &namespaces(mode)).await
        };
        sim.block_on(pressed(small, rt.clock(), Caps { keeps: false, ..caps() }));
    }
}

#[test]
fn the_flash_tier_is_a_storage_over_a_real_file() {
    on_shard(async |rt| {
        let rt = Timed::over(rt);
        for mode in MODES {
            // One file after the other.
            let last = RefCell::new(None);
            let make = async || {
                close(last.take()).await;
                let dir = disk();
                let device = FileDevice::open(&dir.path().join("log"), LOG_BYTES).await.expect("opens");
                let ring = RingFile::open(&dir.path().join("ring"), RING_SLOTS).expect("opens");
                let tier = fresh(device, &rt, ring, &VersionClock::new(1), &namespaces(mode)).await;
                last.replace(Some((tier.clone(), dir)));
                tier
            };
            suite(make, rt.clock(), caps()).await;
            close(last.take()).await;
        }
    });
}

async fn close<R: Rt>(last: Option<(FlashTier<FileDevice, R>, tempfile::TempDir)>) {
    if let Some((tier, _dir)) = last {
        tier.close().await.expect("closes");
    }
}
