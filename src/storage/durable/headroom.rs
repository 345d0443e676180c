//! Room on the disk that only removals may use: a file that is there to be given up.
//!
//! Removing is writing, too: a tombstone is a row, and a transaction copies pages before it frees any. On a disk that
//! others have filled, a node would refuse the very deletions that make room. So the index keeps [`HEADROOM_BYTES`]
//! in a file of their own, gives them back to the file system when one of its writes finds no room, and takes them
//! again as soon as there is some.
//!
//! Invariants: what is missing from it is room that nothing but removals may take ([`Room`](super::room::Room) counts
//! it to the reserve); it is regained before it is looked at. Its contents mean nothing, and a file that is not there
//! is made: deleting it while no node runs is harmless.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::fs::{FallocateFlags, fallocate};

use super::room::is_full;

/// What removals have for themselves, in bytes.
pub const HEADROOM_BYTES: u64 = 4 << 20;

/// The least piece of it that is taken back.
const PIECE_BYTES_MIN: u64 = 128 << 10;

/// The headroom of one index. Nobody's until [`Headroom::hold`].
#[derive(Debug, Default)]
pub struct Headroom {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    held: u64,
    given_up: u64,
}

impl Headroom {
    /// Takes the headroom into the file `path`, or as much as there is room for. Blocks.
    ///
    /// # Errors
    /// The file can be neither opened nor made, for another reason than a full disk.
    pub fn hold(&self, path: &Path) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        {
            let mut state = self.state();
            // More than that is not needed; what a crash left of a taking is not counted twice.
            if file.metadata()?.len() > HEADROOM_BYTES {
                file.set_len(HEADROOM_BYTES)?;
            }
            state.held = allocated(&file)?;
            state.file = Some(file);
        }
        self.regain()
    }

    /// Bytes that can be given up.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.state().held
    }

    /// Bytes that were given up, or never found; 0 where none are kept.
    #[must_use]
    pub fn missing(&self) -> u64 {
        let state = self.state();
        if state.file.is_some() { HEADROOM_BYTES - state.held } else { 0 }
    }

    /// How often it was given up.
    #[must_use]
    pub fn times_given_up(&self) -> u64 {
        self.state().given_up
    }

    /// Gives all of it back to the file system; `false`: there was nothing to give. Blocks.
    pub fn give_up(&self) -> bool {
        let mut state = self.state();
        let State { file: Some(file), held, given_up } = &mut *state else { return false };
        if *held == 0 {
            return false;
        }
        if let Err(error) = file.set_len(0) {
            tracing::error!(%error, "the headroom of the index cannot be given up");
            return false;
        }
        tracing::debug!(bytes = *held, "the disk is full: the index writes into its headroom");
        *held = 0;
        *given_up += 1;
        true
    }

    /// Takes back what is missing, or as much of it as there is room for. Blocks; costs nothing when none is missing.
    ///
    /// # Errors
    /// Another than a full disk.
    pub fn regain(&self) -> io::Result<()> {
        let mut state = self.state();
        let State { file: Some(file), held, .. } = &mut *state else { return Ok(()) };
        let mut wanted = HEADROOM_BYTES;
        while *held < wanted {
            match fallocate(&*file, FallocateFlags::empty(), 0, wanted).map_err(io::Error::from) {
                Ok(()) => *held = wanted,
                Err(error) if is_full(&error) && wanted / 2 >= PIECE_BYTES_MIN => {
                    // Some file systems keep what they got until there was no more.
                    file.set_len(*held)?;
                    wanted /= 2;
                }
                Err(error) if is_full(&error) => return file.set_len(*held),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that cutting the file off would free.
fn allocated(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    Ok((metadata.blocks() * 512).min(metadata.len()).min(HEADROOM_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_held_given_up_and_regained() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("headroom");
        let headroom = Headroom::default();
        assert_eq!((headroom.held(), headroom.missing()), (0, 0), "nobody keeps one");
        assert!(!headroom.give_up());
        headroom.hold(&path).expect("a folder with room");
        assert_eq!((headroom.held(), headroom.missing()), (HEADROOM_BYTES, 0));
        let blocks = || std::fs::metadata(&path).expect("there").blocks() * 512;
        assert!(blocks() >= HEADROOM_BYTES, "really taken: {}", blocks());
        assert!(headroom.give_up());
        assert_eq!((blocks(), headroom.missing(), headroom.times_given_up()), (0, HEADROOM_BYTES, 1));
        assert!(!headroom.give_up(), "only once");
        headroom.regain().expect("room");
        assert_eq!(headroom.missing(), 0);
        // What is there at the next start is held, whatever its length says.
        drop(headroom);
        File::options().write(true).open(&path).and_then(|file| file.set_len(9 << 20)).expect("longer");
        let again = Headroom::default();
        again.hold(&path).expect("there");
        assert_eq!((again.held(), std::fs::metadata(&path).expect("there").len()), (HEADROOM_BYTES, HEADROOM_BYTES));
    }
}
