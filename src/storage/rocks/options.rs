//! The settings of RocksDB: engine.md section 16.

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, DBCompressionType, DBRecoveryMode, InfoLogger,
    LogLevel, MergeOperands, Options, SliceTransform, WriteBufferManager,
    compaction_filter::Decision,
};

use super::{Database, view::PREFIX_BYTES};
use crate::{
    clock::Clock,
    storage::{Family, KeyPart, Millis48, number},
};

/// Of all families together. Above it the largest is written to disk: with small data the whole server stays small.
const WRITE_BUFFERS_BYTES: usize = 48 << 20;
/// Of one family.
const WRITE_BUFFER_BYTES: usize = 16 << 20;
/// Bodies of events come fast and are large.
const EVENTS_WRITE_BUFFER_BYTES: usize = 32 << 20;
/// Steps in which a write buffer grows: each family has at least one.
const ARENA_BLOCK_BYTES: usize = 256 << 10;
/// A start after a crash reads at most this much again.
const MAX_WAL_BYTES: u64 = 512 << 20;
/// Descriptors are shared with sockets.
const MAX_OPEN_FILES: i32 = 512;
const COMPACTION_BYTES_PER_SECOND: i64 = 128 << 20;
const DICTIONARY_BYTES: i32 = 16 << 10;
const DICTIONARY_TRAINING_BYTES: i32 = 100 * DICTIONARY_BYTES;
const ZSTD_LEVEL: i32 = 3;
/// RocksDB's default for the other arguments of a compression.
const WINDOW_BITS: i32 = -14;
const STRATEGY: i32 = 0;
/// How often files of temporary rows are looked through for expired ones.
const EXPIRY_SECONDS: u64 = 3_600;
const BLOOM_BITS: f64 = 10.0;

pub(super) fn write_buffers(cache: &Cache) -> WriteBufferManager {
    WriteBufferManager::new_write_buffer_manager_with_cache(
        WRITE_BUFFERS_BYTES,
        false,
        cache.clone(),
    )
}

pub(super) fn of_database(buffers: &WriteBufferManager) -> Options {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_manual_wal_flush(false);
    options.set_max_total_wal_size(MAX_WAL_BYTES);
    options.set_write_buffer_manager(buffers);
    options.set_max_background_jobs(i32::try_from(cores / 2).unwrap_or(2).max(2));
    options.set_auto_tuned_ratelimiter(COMPACTION_BYTES_PER_SECOND, 100_000, 10);
    options.set_max_open_files(MAX_OPEN_FILES);
    // There is one thread that writes.
    options.set_allow_concurrent_memtable_write(false);
    options.set_enable_write_thread_adaptive_yield(false);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Warn, report));
    options
}

/// What RocksDB itself has to say.
fn report(level: LogLevel, text: &str) {
    match level {
        LogLevel::Error | LogLevel::Fatal => tracing::error!(text, "RocksDB reports an error"),
        LogLevel::Warn => tracing::debug!(text, "RocksDB warns"),
        LogLevel::Debug | LogLevel::Info | LogLevel::Header => {}
    }
}

pub(super) fn of_family(family: Family, cache: &Cache, clock: &Clock) -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_arena_block_size(ARENA_BLOCK_BYTES);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_merge_operator_associative("hearth.add", add);
    options.set_block_based_table_factory(&tables(family, cache));
    compress(family, &mut options);
    match family {
        Family::Events => options.set_write_buffer_size(EVENTS_WRITE_BUFFER_BYTES),
        Family::State => options.set_optimize_filters_for_hits(true),
        Family::ToDevice => options.add_compact_on_deletion_collector_factory(1_024, 512, 0.5),
        Family::Temporary => expire(&mut options, clock.clone()),
        _ => {}
    }
    if is_by_room(family) {
        options.set_prefix_extractor(SliceTransform::create_fixed_prefix(PREFIX_BYTES));
    }
    options
}

/// Families whose keys start with a tag and a room.
fn is_by_room(family: Family) -> bool {
    use Family::{EventMeta, Events, Membership, RoomHeads, State, Timeline};
    matches!(
        family,
        Events | EventMeta | Timeline | State | Membership | RoomHeads
    )
}

fn tables(family: Family, cache: &Cache) -> BlockBasedOptions {
    let mut tables = BlockBasedOptions::default();
    tables.set_format_version(6);
    tables.set_block_cache(cache);
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_cache_index_and_filter_blocks_with_high_priority(true);
    tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
    match family {
        Family::Events | Family::Log => tables.set_block_size(16 << 10),
        Family::State => tables.set_block_size(8 << 10),
        Family::EventIds => {
            tables.set_block_size(4 << 10);
            tables.set_ribbon_filter(BLOOM_BITS);
            tables.set_pin_top_level_index_and_filter(true);
        }
        Family::ToDevice | Family::Temporary => {
            tables.set_block_size(8 << 10);
            tables.set_bloom_filter(BLOOM_BITS, false);
        }
        Family::Meta | Family::Interned => {
            tables.set_block_size(4 << 10);
            tables.set_bloom_filter(BLOOM_BITS, false);
        }
        _ => {
            tables.set_block_size(16 << 10);
            tables.set_bloom_filter(BLOOM_BITS, false);
        }
    }
    tables
}

fn compress(family: Family, options: &mut Options) {
    match family {
        Family::Events => {
            options.set_compression_type(DBCompressionType::Zstd);
            options.set_compression_options(WINDOW_BITS, ZSTD_LEVEL, STRATEGY, 0);
            options.set_bottommost_compression_type(DBCompressionType::Zstd);
            options.set_bottommost_compression_options(
                WINDOW_BITS,
                ZSTD_LEVEL,
                STRATEGY,
                DICTIONARY_BYTES,
                true,
            );
            options.set_bottommost_zstd_max_train_bytes(DICTIONARY_TRAINING_BYTES, true);
        }
        Family::State | Family::ToDevice | Family::Temporary => {
            options.set_compression_type(DBCompressionType::Lz4)
        }
        Family::EventIds | Family::Meta | Family::Interned => {
            options.set_compression_type(DBCompressionType::None)
        }
        _ => {
            options.set_compression_type(DBCompressionType::Lz4);
            options.set_bottommost_compression_type(DBCompressionType::Zstd);
            options.set_bottommost_compression_options(WINDOW_BITS, ZSTD_LEVEL, STRATEGY, 0, true);
        }
    }
}

/// What may be held in memory until there is enough to train a dictionary. RocksDB would hold a whole file.
pub(super) fn limit_dictionary_buffer(
    database: &Database,
    events: &ColumnFamily,
) -> Result<(), rocksdb::Error> {
    let settings = format!(
        "{{window_bits={WINDOW_BITS};level={ZSTD_LEVEL};strategy={STRATEGY};max_dict_bytes={DICTIONARY_BYTES};\
         zstd_max_train_bytes={DICTIONARY_TRAINING_BYTES};max_dict_buffer_bytes={};enabled=true}}",
        4 * DICTIONARY_TRAINING_BYTES
    );
    database.set_options_cf(
        events,
        &[("bottommost_compression_opts", settings.as_str())],
    )
}

/// Temporary rows start with the moment at which they expire.
fn expire(options: &mut Options, clock: Clock) {
    options.add_compact_on_deletion_collector_factory(1_024, 512, 0.5);
    options.set_periodic_compaction_seconds(EXPIRY_SECONDS);
    options.set_compaction_filter(
        "hearth.expire",
        move |_level, _key: &[u8], mut value: &[u8]| match Millis48::decode(&mut value) {
            Ok(Millis48(expiry)) if expiry < clock.now_ms() => Decision::Remove,
            _ => Decision::Keep,
        },
    );
}

/// Adds up 64-bit numbers.
#[allow(
    clippy::unnecessary_wraps,
    reason = "the signature of a merge operator"
)]
fn add(_key: &[u8], before: Option<&[u8]>, deltas: &MergeOperands) -> Option<Vec<u8>> {
    let sum = deltas
        .iter()
        .map(number)
        .fold(before.map_or(0, number), i64::wrapping_add);
    Some(sum.to_le_bytes().to_vec())
}
