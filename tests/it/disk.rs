//! File systems of a test's own: in memory, and on loop devices that can be made to fail. Mounting needs root: a user
//! who is not root needs sudo that asks for nothing (tests/run.sh sees to it). A test that can mount nothing fails. What
//! was mounted belongs to the user, and is unmounted on the way out, whatever happens: declare it before the node.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{getegid, geteuid};

/// What is left of a device that has failed, in bytes: nothing of its file system lies there.
const STUMP_BYTES: u64 = 64 << 10;

/// A mounted file system. Its loop device, if it has one, goes with the mount.
pub(crate) struct Mount {
    at: PathBuf,
    /// Loop device and image.
    device: Option<(String, PathBuf)>,
}

impl Mount {
    /// A file system in memory that takes `bytes`.
    pub(crate) fn tmpfs(at: &Path, bytes: u64) -> Self {
        let options = format!("size={bytes},uid={},gid={}", geteuid(), getegid());
        run("mount", ["-t", "tmpfs", "-o", &options, "tmpfs"].map(OsStr::new).into_iter().chain([at.as_os_str()]));
        Self { at: at.into(), device: None }
    }

    /// A new ext4 on a loop device over `image`, a sparse file of `bytes`. Its own structures are really written, so
    /// that only data asks the image for more room.
    pub(crate) fn ext4(at: &Path, image: &Path, bytes: u64) -> Self {
        File::create(image).and_then(|file| file.set_len(bytes)).expect("an image");
        let eager = ["-q", "-F", "-m", "0", "-N", "64", "-J", "size=4", "-E"];
        let owner = format!("nodiscard,lazy_itable_init=0,lazy_journal_init=0,root_owner={}:{}", geteuid(), getegid());
        let eager = eager.into_iter().chain([&*owner]).map(OsStr::new);
        run("mkfs.ext4", eager.chain([image.as_os_str()]));
        let device = LoopDevice::attach(image);
        device.mount(at);
        Self { at: at.into(), device: Some((device.0.clone(), image.into())) }
    }

    /// What who looks after the machine does when the device is well again: a file system that met failing writes may
    /// have turned read-only by itself, whenever it came to write its own.
    pub(crate) fn repair(&mut self) {
        let (name, image) = self.device.as_mut().expect("a file system on a loop device");
        run("umount", [self.at.as_os_str()]);
        let device = LoopDevice::attach(image);
        // 0: nothing was wrong; 1: mended.
        let checked = as_root("e2fsck").args(["-f", "-y", &device.0]).output().expect("e2fsck runs");
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked:?}");
        device.mount(&self.at);
        name.clone_from(&device.0);
    }

    /// Makes every read and write of the device fail from now on; what was on it is lost.
    pub(crate) fn break_device(&self) {
        let (device, image) = self.device.as_ref().expect("a file system on a loop device");
        File::options().write(true).open(image).and_then(|file| file.set_len(STUMP_BYTES)).expect("the image");
        run("losetup", ["--set-capacity", device].map(OsStr::new));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(as_root("umount").arg("-l").arg(&self.at).status());
    }
}

/// Detached when dropped; one that is mounted is gone when the mount is.
struct LoopDevice(String);

impl LoopDevice {
    fn mount(&self, at: &Path) {
        run("mount", ["-t", "ext4", "-o", "nodiscard", &self.0].map(OsStr::new).into_iter().chain([at.as_os_str()]));
    }

    fn attach(image: &Path) -> Self {
        Self(run("losetup", ["--find", "--show"].map(OsStr::new).into_iter().chain([image.as_os_str()])))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        drop(as_root("losetup").args(["--detach", &self.0]).status());
    }
}

fn as_root(program: &str) -> Command {
    if geteuid().is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", program]);
    sudo
}

fn run<'a>(program: &str, args: impl IntoIterator<Item = &'a OsStr>) -> String {
    let args: Vec<_> = args.into_iter().collect();
    let needs = "this test mounts file systems of its own: it needs root or sudo without a question, and loop devices";
    let output = as_root(program).args(&args).output();
    let output = output.unwrap_or_else(|e| panic!("{needs}; {program} does not run: {e}"));
    assert!(output.status.success(), "{needs}; {program} {args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
