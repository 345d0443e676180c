//! The tier that is not there.

use std::{convert::Infallible, ops::Range};

use bytes::Bytes;

use crate::cache::{
    CacheError, CacheKey, CacheMeta, HitHandler, MissHandler, Precondition, PurgeReport, Storage, Stored, Tier,
};

/// The type of a tier that is always off: there is no value of it, so none of this is ever called.
#[derive(Debug)]
pub struct NoTier(Infallible);

impl Storage for NoTier {
    type Hit = NoTier;
    type Miss = NoTier;

    async fn lookup(&self, _key: &CacheKey) -> Result<Option<(CacheMeta, NoTier)>, CacheError> {
        match self.0 {}
    }

    async fn get_miss_handler(&self, _: &CacheKey, _: CacheMeta, _: Precondition) -> Result<NoTier, CacheError> {
        match self.0 {}
    }

    async fn purge(&self, _key: &CacheKey, _precondition: Precondition) -> Result<PurgeReport, CacheError> {
        match self.0 {}
    }

    async fn update_meta(&self, _key: &CacheKey, _meta: CacheMeta) -> Result<bool, CacheError> {
        match self.0 {}
    }
}

impl HitHandler for NoTier {
    fn remaining(&self) -> u64 {
        match self.0 {}
    }

    fn seek(&mut self, _range: Range<u64>) -> Result<(), CacheError> {
        match self.0 {}
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        match self.0 {}
    }

    fn tier(&self) -> Tier {
        match self.0 {}
    }
}

impl MissHandler for NoTier {
    fn meta_mut(&mut self) -> &mut CacheMeta {
        match self.0 {}
    }

    async fn write_body(&mut self, _chunk: Bytes, _eof: bool) -> Result<(), CacheError> {
        match self.0 {}
    }

    async fn finish(self) -> Result<Stored, CacheError> {
        match self.0 {}
    }
}
