//! Users and their rights: who may run which commands, on which keys and channels.
//! <https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/>
//!
//! A [`User`] has passwords and selectors. A selector allows commands, keys and channels; a request
//! is allowed if one selector allows all of it. Rules such as `+@read` or `~cache:*` make a user
//! from another one, all of them or none. An [`Account`] is a user under its name. Connections hold
//! it, so a change of the rights holds for them at once. [`Users`] has all accounts, and notes in
//! its [`Denials`] what was refused.
//!
//! This module knows neither the protocol nor the commands: [`Catalogue`] names the commands.

mod catalogue;
mod denials;
mod selector;
mod user;
mod users;

pub use catalogue::{Catalogue, Entry};
pub use denials::{Context, Denial, Denials, Reason, Refusals};
pub use selector::{Access, Denied, Request, Selector, Wanted};
pub use user::User;
pub use users::{Account, DEFAULT, Defined, Loaded, Users};
