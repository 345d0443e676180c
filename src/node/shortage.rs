//! Whether L3 refuses writes for want of room, as health tells it.
//!
//! Pure. A look comes about every second. L3 is short of room while a small write would be refused, and for
//! [`LOOKS`] looks after any write was: a large one may find no room where small ones still do.

use crate::reason::{Reason, ReasonCounts};

/// Looks after a refusal that L3 still counts as short of room.
const LOOKS: u8 = 10;

/// The reasons there are, in the order of their names.
const REASONS: [Reason; 2] = [Reason::DiskFull, Reason::QuotaFull];

/// What was seen up to the last look.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    refusals: [u64; 2],
    looks_left: [u8; 2],
}

impl Shortage {
    /// What L3 is short of. `refusals`: of L3 since the start; `full`: why a small write would be refused now.
    pub(super) fn look(&mut self, refusals: &ReasonCounts, full: Option<Reason>) -> Vec<Reason> {
        let mut short = Vec::new();
        for (reason, (seen, left)) in REASONS.into_iter().zip(self.refusals.iter_mut().zip(&mut self.looks_left)) {
            let before = std::mem::replace(seen, refusals.get(reason));
            *left = if *seen > before { LOOKS } else { left.saturating_sub(1) };
            if *left > 0 || full == Some(reason) {
                short.push(reason);
            }
        }
        short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_ends_when_nothing_is_refused_any_more() {
        let (mut shortage, mut refusals) = (Shortage::default(), ReasonCounts::default());
        assert_eq!(shortage.look(&refusals, None), []);
        assert_eq!(shortage.look(&refusals, Some(Reason::DiskFull)), [Reason::DiskFull]);
        assert_eq!(shortage.look(&refusals, None), []);
        refusals.count(Reason::QuotaFull);
        for look in 0..LOOKS {
            assert_eq!(shortage.look(&refusals, None), [Reason::QuotaFull], "{look}");
        }
        assert_eq!(shortage.look(&refusals, None), []);
        refusals.count(Reason::Io);
        assert_eq!(shortage.look(&refusals, None), [], "no want of room");
        refusals.add(Reason::DiskFull, 3);
        assert_eq!(shortage.look(&refusals, Some(Reason::QuotaFull)), REASONS);
    }
}
