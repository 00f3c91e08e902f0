//! The embedded engine: RocksDB, one column family for each [`Family`], one write-ahead log.

mod options;
mod snapshot;
mod view;

use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rocksdb::{
    Cache, ColumnFamily, ColumnFamilyDescriptor, DBWithThreadMode, FlushOptions, ReadOptions,
    SingleThreaded, WriteBatch, WriteBufferManager, WriteOptions, checkpoint::Checkpoint,
};

use crate::clock::Clock;

pub(super) use self::view::{Scan, View};
use super::{
    Batch, Config, Error, Family, Result, batch::Write, stats::EngineStats, stats::FamilyStats,
};

/// The lock that says which process has the database open.
const LOCK_FILE: &str = "lock";
/// RocksDB's own folder.
const FILES: &str = "rocks";

type Database = DBWithThreadMode<SingleThreaded>;

pub(super) struct Rocks {
    database: Arc<Database>,
    path: PathBuf,
    cache: Cache,
    buffers: WriteBufferManager,
    synced: WriteOptions,
    unsynced: WriteOptions,
    /// Held until the database is closed.
    _lock: File,
}

impl Rocks {
    /// Opens the database in the folder `path`, or makes one.
    pub(super) fn open(config: &Config, path: &Path, clock: &Clock) -> Result<Self> {
        // Nobody else may read what people write to each other.
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path);
        made.map_err(|error| Error::Open(format!("{}: {error}", path.display())))?;
        let lock = lock(path)?;
        let cache_bytes = usize::try_from(config.cache_bytes()).unwrap_or(usize::MAX);
        let cache = Cache::new_lru_cache(cache_bytes);
        let buffers = options::write_buffers(&cache);
        let families = Family::ALL.map(|family| {
            ColumnFamilyDescriptor::new(family.code(), options::of_family(family, &cache, clock))
        });
        let database = Database::open_cf_descriptors(
            &options::of_database(&buffers),
            path.join(FILES),
            families,
        );
        let database =
            database.map_err(|error| Error::Open(format!("{}: {error}", path.display())))?;
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        let rocks = Self {
            database: Arc::new(database),
            path: path.to_owned(),
            cache,
            buffers,
            synced,
            unsynced: WriteOptions::default(),
            _lock: lock,
        };
        options::limit_dictionary_buffer(&rocks.database, rocks.handle(Family::Events))
            .map_err(failed)?;
        Ok(rocks)
    }

    pub(super) fn write(
        &self,
        batches: &mut dyn Iterator<Item = &Batch>,
        sync: bool,
    ) -> Result<()> {
        let mut group = WriteBatch::default();
        for (family, write) in batches.flat_map(Batch::writes) {
            let handle = self.handle(family);
            match write {
                Write::Put { key, value } => group.put_cf(handle, key, value),
                Write::Delete { key } => group.delete_cf(handle, key),
                Write::DeleteRange { start, end } => group.delete_range_cf(handle, start, end),
                Write::Add { key, delta } => group.merge_cf(handle, key, delta),
            }
        }
        self.database
            .write_opt(group, if sync { &self.synced } else { &self.unsynced })
            .map_err(failed)
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.database.flush_wal(true).map_err(failed)
    }

    pub(super) fn view(&self) -> View {
        View::new(Arc::clone(&self.database))
    }

    /// Writes what is in memory into files, so that the next start has nothing to replay.
    pub(super) fn flush(&self) -> Result<()> {
        let handles: Vec<&ColumnFamily> = Family::ALL.map(|family| self.handle(family)).into();
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.database
            .flush_cfs_opt(&handles, &options)
            .map_err(failed)
    }

    /// Makes a copy in the folder `to`, which must not exist, by hard links where it can.
    pub(super) fn checkpoint(&self, to: &Path) -> Result<()> {
        fs::create_dir(to).map_err(|error| Error::Engine(format!("{}: {error}", to.display())))?;
        Checkpoint::new(&self.database)
            .and_then(|copy| copy.create_checkpoint(to.join(FILES)))
            .map_err(failed)
    }

    /// Reads every row, which verifies every checksum. Returns how many rows there are.
    pub(super) fn check_integrity(&self) -> Result<u64> {
        let mut rows = 0;
        for family in Family::ALL {
            let mut options = ReadOptions::default();
            options.set_total_order_seek(true);
            options.fill_cache(false);
            options.set_verify_checksums(true);
            let mut iterator = self
                .database
                .raw_iterator_cf_opt(self.handle(family), options);
            iterator.seek_to_first();
            while iterator.valid() {
                rows += 1;
                iterator.next();
            }
            iterator.status().map_err(failed)?;
        }
        Ok(rows)
    }

    pub(super) fn compact(&self) {
        for family in Family::ALL {
            self.database
                .compact_range_cf(self.handle(family), None::<&[u8]>, None::<&[u8]>);
        }
    }

    /// What the files take, without the free space in them.
    pub(super) fn disk_bytes(&self) -> u64 {
        let Ok(files) = fs::read_dir(self.path.join(FILES)) else {
            return 0;
        };
        // Files vanish while we look; those count nothing.
        files
            .filter_map(|file| file.ok()?.metadata().ok())
            .map(|metadata| metadata.len())
            .sum()
    }

    pub(super) fn stats(&self) -> EngineStats {
        let of = |family: Family, property: &str| {
            let value = self
                .database
                .property_int_value_cf(self.handle(family), property);
            value.ok().flatten().unwrap_or(0)
        };
        let families = Family::ALL.map(|family| FamilyStats {
            family: family.code(),
            disk_bytes: of(family, "rocksdb.live-sst-files-size"),
            memory_bytes: of(family, "rocksdb.cur-size-all-mem-tables"),
            rows: of(family, "rocksdb.estimate-num-keys"),
        });
        let pending =
            Family::ALL.map(|family| of(family, "rocksdb.estimate-pending-compaction-bytes"));
        EngineStats {
            cache_bytes: self.cache.get_usage() as u64,
            write_buffer_bytes: self.buffers.get_usage() as u64,
            families: families.into(),
            pending_compaction_bytes: pending.iter().sum(),
            is_stalled: of(Family::Meta, "rocksdb.is-write-stopped") != 0,
            delayed_write_rate: of(Family::Meta, "rocksdb.actual-delayed-write-rate"),
        }
    }

    fn handle(&self, family: Family) -> &ColumnFamily {
        view::handle(&self.database, family)
    }
}

/// Takes the lock of the folder.
fn lock(path: &Path) -> Result<File> {
    let file = path.join(LOCK_FILE);
    let failed = |error: std::io::Error| Error::Open(format!("{}: {error}", file.display()));
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&file)
        .map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Error::Open(format!(
            "another process has {} open; is Hearth already running?",
            path.display()
        ))),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn failed(error: rocksdb::Error) -> Error {
    Error::Engine(error.into_string())
}
