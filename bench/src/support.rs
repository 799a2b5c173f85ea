//! What the integration tests use to fetch the real parts and to keep child processes and files from outliving them.

#![allow(dead_code)]

#[path = "../../tests/it/support/parts.rs"]
pub mod parts;
#[path = "../../tests/it/support/ports.rs"]
pub mod ports;
#[path = "../../tests/it/support/process.rs"]
pub mod process;
#[path = "../../tests/it/support/temp.rs"]
pub mod temp;
