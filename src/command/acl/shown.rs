//! Users and refusals as replies.

use crate::acl::{Denial, Selector, User};
use crate::command::Reply;
use crate::database::now_ms;

/// The reply of ACL GETUSER.
pub(super) fn user(user: &User) -> Reply {
    let flags = user.flags().into_iter().map(Reply::bulk);
    let mut fields = vec![
        pair("flags", Reply::Set(flags.collect())),
        pair("passwords", Reply::Array(user.passwords().map(Reply::bulk).collect())),
    ];
    fields.extend(rights(user.root()));
    let selectors = user
        .selectors()
        .iter()
        .map(|selector| Reply::Map(rights(selector).into()));
    fields.push(pair("selectors", Reply::Array(selectors.collect())));
    Reply::Map(fields)
}

fn rights(selector: &Selector) -> [(Reply, Reply); 3] {
    [
        pair("commands", Reply::bulk(selector.commands())),
        pair("keys", Reply::bulk(selector.keys())),
        pair("channels", Reply::bulk(selector.channels())),
    ]
}

/// An entry of ACL LOG.
pub(super) fn denial(denial: &Denial) -> Reply {
    let age = now_ms().saturating_sub(denial.updated) as f64 / 1_000.0;
    let number = |number: u64| Reply::Int(i64::try_from(number).unwrap_or(i64::MAX));
    Reply::Map(vec![
        pair("count", number(denial.count)),
        pair("reason", Reply::bulk(denial.reason.name())),
        pair("context", Reply::bulk(denial.context.name())),
        pair("object", Reply::bulk(&denial.object)),
        pair("username", Reply::bulk(&denial.user)),
        pair("age-seconds", Reply::Double(age)),
        pair("client-info", Reply::bulk(&denial.client)),
        pair("entry-id", number(denial.id)),
        pair("timestamp-created", number(denial.created)),
        pair("timestamp-last-updated", number(denial.updated)),
    ])
}

fn pair(name: &str, value: Reply) -> (Reply, Reply) {
    (Reply::bulk(name), value)
}
