//! Lua scripts: what EVAL runs.
//!
//! A [`State`](state::State) is a Lua interpreter with Redis's libraries, and without anything that
//! reaches files, the system or another script. [`Engine`] keeps a few of them, and the texts of
//! the known scripts. A state runs one script at a time. A script acts on its [`Host`] alone, which
//! runs its commands; this module knows neither commands nor data.
//!
//! Lua code can be stopped between any two instructions ([`Control`]): by SCRIPT KILL, when its
//! time is over, and when it wants too much memory. What Lua's own library does in one instruction
//! and for as long as it likes (`string.rep`, patterns) is replaced by functions that can be
//! stopped too.

mod bits;
mod control;
mod convert;
mod engine;
mod functions;
mod json;
mod library;
mod msgpack;
mod pattern;
mod random;
mod sha1;
mod state;
mod strings;
mod structs;
mod texts;

pub use self::control::{Control, Stop};
pub use self::engine::{Call, Engine, Job, Kill, Kind};
pub use self::functions::{Index, Library, Refused, Registered, metadata};
pub use self::sha1::{Sha, sha1_hex};
pub use self::state::{Ended, Host, Level, MEMORY};
pub use self::texts::{Script, Scripts, flags};
