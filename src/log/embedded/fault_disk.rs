//! A disk in memory that fails on demand: no room, short writes, an fsync that fails, and a power
//! failure that keeps any sectors of what was not fsynced.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use parking_lot::{Mutex, MutexGuard};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::disk::{BootId, Disk, DiskFile};
use crate::room::Room;

const SECTOR: usize = 512;

#[derive(Clone, Default)]
pub struct Faults {
    /// The most bytes that all files may have together.
    pub capacity: Option<usize>,
    /// Writes take in at most this many bytes.
    pub short_writes: Option<usize>,
    pub fsync_fails: bool,
    /// The next fsync of a file fails, and no other.
    pub next_fsync_fails: bool,
    /// After this many changes nothing works any more.
    pub changes_left: Option<usize>,
    pub set_len_fails: bool,
    /// The room that it reports; otherwise it reports plenty.
    pub room: Option<Room>,
}

#[derive(Clone, Default)]
struct Inode {
    data: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    SetLen(usize),
}

impl Change {
    fn apply(self, data: &mut Vec<u8>) {
        match self {
            Change::Write { at, bytes } => {
                data.resize(data.len().max(at + bytes.len()), 0);
                data[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            Change::SetLen(len) => data.resize(len, 0),
        }
    }
}

#[derive(Clone)]
enum Naming {
    Link(PathBuf, u64),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
}

#[derive(Clone, Default)]
struct DiskState {
    inodes: HashMap<u64, Inode>,
    names: HashMap<PathBuf, u64>,
    synced_names: HashMap<PathBuf, u64>,
    unsynced_names: Vec<Naming>,
    next_inode: u64,
    boot: u8,
    faults: Faults,
}

#[derive(Clone, Default)]
pub struct FaultDisk {
    state: Arc<Mutex<DiskState>>,
    gate: Arc<Mutex<Option<Gate>>>,
}

/// Where a thread that changes the disk is made to wait.
struct Gate {
    changes_left: usize,
    reached: mpsc::Sender<()>,
    release: mpsc::Receiver<()>,
}

struct FaultFile {
    disk: FaultDisk,
    inode: u64,
}

impl FaultDisk {
    pub fn new() -> Self {
        let disk = Self::default();
        disk.state.lock().boot = 1;
        disk
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// What a process that starts after a kill finds: everything written, synced or not.
    pub fn after_kill(&self) -> Self {
        let mut state = self.state.lock().clone();
        state.faults = Faults::default();
        Self {
            state: Arc::new(Mutex::new(state)),
            gate: Arc::default(),
        }
    }

    /// What is found after a power failure: of everything that was not fsynced, any part.
    pub fn after_power_failure(&self, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut state = self.state.lock().clone();
        state.faults = Faults::default();
        state.boot += 1;
        let kept = rng.random_range(0..=state.unsynced_names.len());
        let mut names = state.synced_names.clone();
        for naming in state.unsynced_names.drain(..).take(kept) {
            naming.apply(&mut names);
        }
        state.synced_names = names.clone();
        state.names = names;
        for inode in state.inodes.values_mut() {
            inode.lose_unsynced(&mut rng);
        }
        Self {
            state: Arc::new(Mutex::new(state)),
            gate: Arc::default(),
        }
    }

    /// The change after `changes_left` more changes waits. The receiver reports it, and the sender
    /// lets it go on.
    pub fn pause_after(&self, changes_left: usize) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (reached, was_reached) = mpsc::channel();
        let (go_on, release) = mpsc::channel();
        *self.gate.lock() = Some(Gate {
            changes_left,
            reached,
            release,
        });
        (was_reached, go_on)
    }

    /// Every change begins here.
    fn change(&self) -> io::Result<MutexGuard<'_, DiskState>> {
        let mut gate = self.gate.lock();
        let arrived = gate.take_if(|gate| gate.changes_left == 0);
        if let Some(gate) = &mut *gate {
            gate.changes_left -= 1;
        }
        drop(gate);
        if let Some(gate) = arrived {
            // A test that ended does not hold anybody up.
            let _ = gate.reached.send(()).map(|()| gate.release.recv());
        }
        let mut state = self.state.lock();
        match &mut state.faults.changes_left {
            Some(0) => return Err(io::Error::other("injected death of the disk")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }

    pub fn names(&self) -> Vec<PathBuf> {
        let mut names: Vec<_> = self.state.lock().names.keys().cloned().collect();
        names.sort();
        names
    }

    pub fn contents(&self, path: &Path) -> Vec<u8> {
        let state = self.state.lock();
        state.inodes[&state.names[path]].data.clone()
    }

    pub fn set_contents(&self, path: &Path, bytes: Vec<u8>) {
        let mut state = self.state.lock();
        let inode = state.names[path];
        state.inodes.insert(
            inode,
            Inode {
                data: bytes.clone(),
                synced: bytes,
                unsynced: Vec::new(),
            },
        );
    }

    pub fn used(&self) -> usize {
        self.state.lock().used()
    }
}

impl Naming {
    fn apply(&self, names: &mut HashMap<PathBuf, u64>) {
        match self {
            Naming::Link(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Naming::Unlink(path) => {
                names.remove(path);
            }
            Naming::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
}

impl Inode {
    fn lose_unsynced(&mut self, rng: &mut StdRng) {
        let mut data = self.synced.clone();
        let keep_share = [0.0, 0.5, 0.9, 1.0][rng.random_range(0..4)];
        for change in self.unsynced.drain(..) {
            match change {
                Change::SetLen(len) if rng.random_bool(0.5) => data.resize(len, 0),
                Change::SetLen(_) => {}
                Change::Write { at, bytes } => {
                    // Sectors are as the disk has them: aligned in the file, not in the write.
                    let mut start = 0;
                    while start < bytes.len() {
                        let sector_end = (at + start) / SECTOR * SECTOR + SECTOR - at;
                        let end = sector_end.min(bytes.len());
                        if rng.random_bool(keep_share) {
                            data.resize(data.len().max(at + end), 0);
                            data[at + start..at + end].copy_from_slice(&bytes[start..end]);
                        }
                        start = end;
                    }
                }
            }
        }
        self.synced = data.clone();
        self.data = data;
    }
}

impl DiskState {
    /// A file counts as long as it has a name.
    fn used(&self) -> usize {
        self.names.values().map(|inode| self.inodes[inode].data.len()).sum()
    }

    fn rename_logged(&mut self, naming: Naming) {
        naming.apply(&mut self.names);
        self.unsynced_names.push(naming);
    }
}

impl Disk for FaultDisk {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let names = self.names().into_iter().filter(|path| path.parent() == Some(dir));
        Ok(names
            .map(|path| path.file_name().expect("a name").to_string_lossy().into_owned())
            .collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.state.lock().names.get(path).copied().ok_or(ErrorKind::NotFound)?;
        Ok(Arc::new(FaultFile {
            disk: self.clone(),
            inode,
        }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.change()?;
        state.next_inode += 1;
        let inode = state.next_inode;
        state.inodes.insert(inode, Inode::default());
        state.rename_logged(Naming::Link(path.to_path_buf(), inode));
        Ok(Arc::new(FaultFile {
            disk: self.clone(),
            inode,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        if !state.names.contains_key(from) {
            return Err(ErrorKind::NotFound.into());
        }
        state.rename_logged(Naming::Rename(from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        if !state.names.contains_key(path) {
            return Err(ErrorKind::NotFound.into());
        }
        state.rename_logged(Naming::Unlink(path.to_path_buf()));
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        if state.faults.fsync_fails {
            return Err(io::Error::other("injected fsync failure"));
        }
        state.unsynced_names.clear();
        state.synced_names = state.names.clone();
        Ok(())
    }

    fn room(&self, _dir: &Path) -> io::Result<Room> {
        let plenty = Room {
            free: u64::MAX,
            total: u64::MAX,
        };
        Ok(self.state.lock().faults.room.unwrap_or(plenty))
    }

    fn boot_id(&self) -> Option<BootId> {
        Some([self.state.lock().boot; 16])
    }
}

impl DiskFile for FaultFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state.lock().inodes[&self.inode].data.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.disk.state.lock();
        let data = &state.inodes[&self.inode].data;
        let rest = data.get(at as usize..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let mut state = self.disk.change()?;
        let at = at as usize;
        let len = state.inodes[&self.inode].data.len();
        let room = state
            .faults
            .capacity
            .map_or(usize::MAX, |capacity| capacity.saturating_sub(state.used()));
        let fits = bytes.len().min((len + room.min(usize::MAX - len)).saturating_sub(at));
        let n = fits.min(state.faults.short_writes.unwrap_or(usize::MAX));
        if n == 0 && !bytes.is_empty() {
            return Err(ErrorKind::StorageFull.into());
        }
        let inode = state.inodes.get_mut(&self.inode).expect("an open file");
        inode.data.resize(len.max(at + n), 0);
        inode.data[at..at + n].copy_from_slice(&bytes[..n]);
        inode.unsynced.push(Change::Write {
            at,
            bytes: bytes[..n].to_vec(),
        });
        Ok(n)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.change()?;
        if state.faults.set_len_fails {
            return Err(io::Error::other("injected truncation failure"));
        }
        let inode = state.inodes.get_mut(&self.inode).expect("an open file");
        inode.data.resize(len as usize, 0);
        inode.unsynced.push(Change::SetLen(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.change()?;
        let fails = state.faults.fsync_fails | std::mem::take(&mut state.faults.next_fsync_fails);
        let inode = state.inodes.get_mut(&self.inode).expect("an open file");
        if fails {
            // As on Linux: the pages stay readable and count as written, so no later fsync writes
            // them.
            inode.unsynced.clear();
            return Err(io::Error::other("injected fsync failure"));
        }
        for change in std::mem::take(&mut inode.unsynced) {
            change.apply(&mut inode.synced);
        }
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
}
