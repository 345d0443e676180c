//! A disk below redb: loses what was not synced, fails when told, holds a sync until let go.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use redb::StorageBackend;

/// The most a test waits for another thread.
const PATIENCE: Duration = Duration::from_secs(60);

/// A disk with one file. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What survives a power cut.
    synced: Vec<u8>,
    /// Written since, in order; survives or not, each on its own.
    unsynced: Vec<Written>,
    /// What is read.
    now: Vec<u8>,
    /// Errors of coming writes, lengths and syncs: how many go well before, and what then.
    fail: Option<(usize, Step, io::ErrorKind)>,
    hold_syncs: bool,
    syncs_held: usize,
}

#[derive(Clone, Debug)]
enum Written {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

/// What can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Write,
    Length,
    Sync,
}

impl Disk {
    /// With `bytes` in its file, all synced.
    pub(crate) fn with(bytes: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.state().synced.clone_from(&bytes);
        disk.state().now = bytes;
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no test panics with it")
    }

    /// What the file holds.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.state().now.clone()
    }

    /// What the file may hold after a power cut now: all that was synced, and by `seed` some of the rest, torn.
    pub(crate) fn after_power_cut(&self, seed: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        let state = self.state();
        let mut bytes = state.synced.clone();
        for written in &state.unsynced {
            match written {
                Written::Length(length) if random.bool() => bytes.resize(*length, 0),
                Written::Bytes(at, written) if random.bool() => {
                    let written = &written[..random.usize(..=written.len())];
                    let end = at + written.len();
                    if bytes.len() < end {
                        bytes.resize(end, 0);
                    }
                    bytes[*at..end].copy_from_slice(written);
                }
                _ => {}
            }
        }
        bytes
    }

    /// After `well` more of them, every `step` fails.
    pub(crate) fn fail(&self, well: usize, step: Step, kind: io::ErrorKind) {
        self.state().fail = Some((well, step, kind));
    }

    /// Holds syncs from now on, or lets them go.
    pub(crate) fn hold_syncs(&self, hold: bool) {
        self.state().hold_syncs = hold;
        self.0.moved.notify_all();
    }

    /// Waits until a sync is held.
    pub(crate) fn wait_for_held_sync(&self) {
        let waited = self.0.moved.wait_timeout_while(self.state(), PATIENCE, |state| state.syncs_held == 0);
        assert!(!waited.expect("no test panics with it").1.timed_out(), "no sync came");
    }

    fn step(&self, step: Step) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        match &mut state.fail {
            Some((0, failing, kind)) if *failing == step => return Err((*kind).into()),
            Some((well, failing, _)) if *failing == step => *well -= 1,
            _ => {}
        }
        Ok(state)
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (state, at) = (self.state(), offset as usize);
        let bytes = state.now.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.step(Step::Length)?;
        state.now.resize(len as usize, 0);
        state.unsynced.push(Written::Length(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.step(Step::Sync)?;
        state.syncs_held += 1;
        self.0.moved.notify_all();
        let waited = self.0.moved.wait_timeout_while(state, PATIENCE, |state| state.hold_syncs);
        let (mut state, timeout) = waited.expect("no test panics with it");
        assert!(!timeout.timed_out(), "a sync was never let go");
        state.syncs_held -= 1;
        state.synced = state.now.clone();
        state.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut state, at) = (self.step(Step::Write)?, offset as usize);
        let end = at + data.len();
        if state.now.len() < end {
            state.now.resize(end, 0);
        }
        state.now[at..end].copy_from_slice(data);
        state.unsynced.push(Written::Bytes(at, data.to_vec()));
        Ok(())
    }
}
