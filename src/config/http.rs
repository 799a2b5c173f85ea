//! The settings of what HTTP serves: metrics, probes, status.

use std::time::Duration;

use super::kind::{Kind, PORT};
use super::table::{Change, Setting};

const ROW: Setting = Setting::DEFAULT;

/// The rows of [`super::table`] about HTTP.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        name: "http-port",
        kind: PORT,
        default: "0",
        change: Change::AtStart,
        summary: "Port for HTTP clients (/metrics, /livez, /readyz, /status); 0 for none.",
        ..ROW
    },
    Setting {
        name: "metrics-open",
        kind: Kind::YesNo,
        default: "no",
        summary: "Show /metrics without a user.",
        ..ROW
    },
    Setting {
        name: "ready-max-lag",
        kind: Kind::Time {
            min: Duration::from_secs(2),
            max: Duration::from_secs(24 * 3_600),
        },
        default: "10s",
        summary: "How far this node may be behind the log for /readyz to call it ready.",
        ..ROW
    },
    Setting {
        name: "ready-without-log",
        kind: Kind::YesNo,
        default: "yes",
        summary: "Whether /readyz calls this node ready while the log does not answer, for clients that read.",
        ..ROW
    },
];
