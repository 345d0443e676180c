//! The storage a door sees: every key of the node, each on the shard that owns it.
//!
//! A key of the own shard is a plain call; any other crosses the mesh once, through a bridge to that shard. The
//! choice follows from the key alone ([`CacheKey::shard`]), so there is no table to keep.

use std::{ops::Range, rc::Rc};

use bytes::{Bytes, BytesMut};

use crate::{
    cache::{
        CacheError, CacheKey, CacheMeta, Found, HitHandler, MissHandler, Precondition, PurgeReport, Storage, Stored,
        Tier, Trust,
    },
    reason::Reason,
};

/// All shards' storage behind one [`Storage`]: `S` is the own shard's, `R` the way to another's.
#[derive(Debug)]
pub struct Dispatch<S, R> {
    own: Rc<S>,
    /// By shard; `None` at the own index.
    remotes: Box<[Option<R>]>,
    shard: usize,
}

impl<S, R> Dispatch<S, R> {
    /// The view from shard `shard`. `remotes` has one entry a shard, in order, and `None` at `shard` itself.
    #[must_use]
    pub fn new(shard: usize, own: Rc<S>, remotes: Vec<Option<R>>) -> Self {
        debug_assert!(remotes.iter().enumerate().all(|(i, remote)| remote.is_some() == (i != shard)));
        Self { own, remotes: remotes.into(), shard }
    }

    fn route(&self, key: &CacheKey) -> Result<Routed<&S, &R>, CacheError> {
        let owner = key.shard(self.remotes.len());
        if owner == self.shard {
            return Ok(Routed::Own(&self.own));
        }
        let remote = self.remotes.get(owner).and_then(Option::as_ref).map(Routed::Other);
        remote.ok_or(CacheError::Unavailable { reason: Reason::Internal, cause: None })
    }
}

/// Something of the own shard's, or of another's.
#[derive(Debug)]
pub enum Routed<A, B> {
    /// The own shard's.
    Own(A),
    /// Another's.
    Other(B),
}

/// Does the same on either side.
macro_rules! either {
    ($routed:expr, $it:ident => $do:expr) => {
        match $routed {
            Routed::Own($it) => $do,
            Routed::Other($it) => $do,
        }
    };
}

impl<S: Storage, R: Storage> Storage for Dispatch<S, R> {
    type Hit = Routed<S::Hit, R::Hit>;
    type Miss = Routed<S::Miss, R::Miss>;

    async fn lookup(&self, key: &CacheKey) -> Result<Option<(CacheMeta, Self::Hit)>, CacheError> {
        Ok(match self.route(key)? {
            Routed::Own(own) => own.lookup(key).await?.map(|(meta, hit)| (meta, Routed::Own(hit))),
            Routed::Other(other) => other.lookup(key).await?.map(|(meta, hit)| (meta, Routed::Other(hit))),
        })
    }

    async fn find(&self, key: &CacheKey) -> Result<Found<Self::Hit>, CacheError> {
        Ok(match self.route(key)? {
            Routed::Own(own) => match own.find(key).await? {
                Found::Hit(meta, hit) => Found::Hit(meta, Routed::Own(hit)),
                Found::Miss(reason) => Found::Miss(reason),
            },
            Routed::Other(other) => match other.find(key).await? {
                Found::Hit(meta, hit) => Found::Hit(meta, Routed::Other(hit)),
                Found::Miss(reason) => Found::Miss(reason),
            },
        })
    }

    async fn get_miss_handler(
        &self,
        key: &CacheKey,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<Self::Miss, CacheError> {
        Ok(match self.route(key)? {
            Routed::Own(own) => Routed::Own(own.get_miss_handler(key, meta, precondition).await?),
            Routed::Other(other) => Routed::Other(other.get_miss_handler(key, meta, precondition).await?),
        })
    }

    async fn purge(&self, key: &CacheKey, precondition: Precondition) -> Result<PurgeReport, CacheError> {
        either!(self.route(key)?, it => it.purge(key, precondition).await)
    }

    async fn update_meta(&self, key: &CacheKey, meta: CacheMeta) -> Result<bool, CacheError> {
        either!(self.route(key)?, it => it.update_meta(key, meta).await)
    }
}

impl<A: HitHandler, B: HitHandler> HitHandler for Routed<A, B> {
    fn remaining(&self) -> u64 {
        either!(self, it => it.remaining())
    }

    fn seek(&mut self, range: Range<u64>) -> Result<(), CacheError> {
        either!(self, it => it.seek(range))
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        either!(self, it => it.read_body().await)
    }

    fn try_copy(&mut self, out: &mut BytesMut) -> Option<usize> {
        either!(self, it => it.try_copy(out))
    }

    fn tier(&self) -> Tier {
        either!(self, it => it.tier())
    }

    fn trust(&self) -> Trust {
        either!(self, it => it.trust())
    }

    fn confirm(&mut self) {
        either!(self, it => it.confirm());
    }
}

impl<A: MissHandler, B: MissHandler> MissHandler for Routed<A, B> {
    fn meta_mut(&mut self) -> &mut CacheMeta {
        either!(self, it => it.meta_mut())
    }

    async fn write_body(&mut self, chunk: Bytes, eof: bool) -> Result<(), CacheError> {
        either!(self, it => it.write_body(chunk, eof).await)
    }

    async fn finish(self) -> Result<Stored, CacheError> {
        either!(self, it => it.finish().await)
    }
}

#[cfg(test)]
mod tests {
    use engine::rt::sim::{Sim, SimClock};

    use super::*;
    use crate::{storage::memory::MemoryStore, version::VersionClock};

    type Double = MemoryStore<SimClock>;

    #[test]
    fn each_key_is_kept_by_its_shard_and_nowhere_else() {
        const SHARDS: usize = 3;
        let sim = Sim::new(1);
        let stores: Vec<Double> = (0..SHARDS)
            .map(|_| MemoryStore::new(Tier::L0, 1 << 20, sim.clock().clone(), VersionClock::new(1)))
            .collect();
        let views: Vec<_> = (0..SHARDS)
            .map(|at| {
                let remotes = (0..SHARDS).map(|i| (i != at).then(|| stores[i].clone())).collect();
                Dispatch::new(at, Rc::new(stores[at].clone()), remotes)
            })
            .collect();
        sim.block_on(async {
            for i in 0..60 {
                let key = CacheKey::new("n", format!("k{i}").as_bytes(), 7).expect("valid");
                let body = Bytes::from(format!("body {i}"));
                let writer = &views[i % SHARDS];
                let mut miss = writer.get_miss_handler(&key, CacheMeta::default(), Precondition::Absent).await?;
                miss.meta_mut().client_flags = 5;
                miss.write_body(body.clone(), true).await?;
                miss.finish().await?;
                for view in &views {
                    let (meta, mut hit) = view.lookup(&key).await?.expect("written");
                    assert_eq!((meta.client_flags, hit.tier(), hit.remaining()), (5, Tier::L0, body.len() as u64));
                    hit.seek(1..body.len() as u64)?;
                    assert_eq!(hit.read_body().await?, Some(body.slice(1..)));
                }
                for (at, store) in stores.iter().enumerate() {
                    assert_eq!(store.peek(&key).is_some(), at == key.shard(SHARDS), "key {i} on shard {at}");
                }
            }
            let key = CacheKey::new("n", b"k0", 7).expect("valid");
            assert!(views[1].purge(&key, Precondition::Exists).await?.removed.is_some());
            assert!(matches!(views[2].find(&key).await?, Found::Miss(Reason::NotFound)));
            assert!(!views[0].update_meta(&key, CacheMeta::default()).await?);
            Ok::<_, CacheError>(())
        })
        .expect("no fault was planned");
        assert!(stores.iter().all(|store| store.objects() > 5), "keys are spread");
    }
}
