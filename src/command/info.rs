//! INFO.

use std::sync::atomic::Ordering;

use super::connection::REDIS_VERSION;
use super::{Args, Context, Outcome, Reply};

pub fn info(context: &mut Context, _: Args) -> Outcome {
    let shared = context.shared;
    let counters = &shared.service.counters;
    Ok(Reply::Verbatim {
        format: *b"txt",
        text: format!(
            "# Server\r\nredis_version:{REDIS_VERSION}\r\nprocess_id:{}\r\n# Persistence\r\nloading:{}\r\n# Kafka\r\nrecords_applied:{}\r\nlast_checkpoint_records:{}\r\n",
            std::process::id(),
            i32::from(!shared.service.is_serving()),
            counters.records_applied.load(Ordering::Relaxed),
            counters.last_checkpoint_records.load(Ordering::Relaxed),
        )
        .into(),
    })
}
