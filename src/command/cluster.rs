//! CLUSTER and its like: there is no Redis Cluster, since every node has all keys. Each is answered
//! as by a redis-server outside of a cluster.
//! <https://redis.io/docs/latest/commands/?group=cluster>

use std::sync::Arc;

use super::{Args, Command, Compatibility, Outcome, Run, Session, Shared, flag};

const CLUSTER_ROW: Command = Command {
    group: "cluster",
    since: "3.0.0",
    compatibility: Compatibility::Partial("always the error of a server outside of a cluster"),
    run: Run::Session(disabled),
    ..Command::DEFAULT
};

/// Commands of connections.
const ROW: Command = Command {
    flags: flag::FAST | flag::LOADING | flag::STALE,
    categories: &["connection"],
    ..CLUSTER_ROW
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "asking",
        arity: 1,
        flags: flag::FAST,
        summary: "Would allow a command on a slot that is being moved here.",
        ..ROW
    },
    Command {
        name: "cluster",
        arity: -2,
        flags: 0,
        categories: &[],
        complexity: "Depends on the subcommand.",
        summary: "Commands about the cluster.",
        run: Run::Container,
        subcommands: CLUSTER,
        ..ROW
    },
    Command {
        name: "readonly",
        arity: 1,
        summary: "Would allow reads from a replica of a cluster.",
        ..ROW
    },
    Command {
        name: "readwrite",
        arity: 1,
        summary: "Would end READONLY.",
        ..ROW
    },
];

fn disabled(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Err("ERR This instance has cluster support disabled".into())
}

/// What changes the cluster.
const fn changes(name: &'static str, arity: i32, since: &'static str, summary: &'static str) -> Command {
    Command {
        name,
        arity,
        flags: flag::ADMIN | flag::STALE | flag::NO_ASYNC_LOADING,
        since,
        summary,
        ..CLUSTER_ROW
    }
}

/// What tells of the cluster.
const fn tells(name: &'static str, arity: i32, since: &'static str, summary: &'static str) -> Command {
    Command {
        flags: flag::STALE,
        ..changes(name, arity, since, summary)
    }
}

impl Command {
    const fn flagged(self, flags: u32) -> Command {
        Command { flags, ..self }
    }
}

#[rustfmt::skip]
const CLUSTER: &[Command] = &[
    changes("cluster|addslots", -3, "3.0.0", "Would take slots."),
    changes("cluster|addslotsrange", -4, "7.0.0", "Would take ranges of slots."),
    changes("cluster|bumpepoch", 2, "3.0.0", "Would raise the epoch."),
    tells("cluster|count-failure-reports", 3, "3.0.0", "Would count who thinks that a node failed.").flagged(flag::ADMIN | flag::STALE),
    tells("cluster|countkeysinslot", 3, "3.0.0", "Would count the keys of a slot."),
    changes("cluster|delslots", -3, "3.0.0", "Would give slots up."),
    changes("cluster|delslotsrange", -4, "7.0.0", "Would give ranges of slots up."),
    changes("cluster|failover", -2, "3.0.0", "Would make this replica the master."),
    changes("cluster|flushslots", 2, "3.0.0", "Would give all slots up."),
    changes("cluster|forget", 3, "3.0.0", "Would forget a node."),
    tells("cluster|getkeysinslot", 4, "3.0.0", "Would list keys of a slot."),
    tells("cluster|help", 2, "5.0.0", "Would list the subcommands.").flagged(flag::LOADING | flag::STALE),
    tells("cluster|info", 2, "3.0.0", "Would tell of the cluster's state."),
    tells("cluster|keyslot", 3, "3.0.0", "Would return the slot of a key."),
    tells("cluster|links", 2, "7.0.0", "Would list connections between nodes."),
    changes("cluster|meet", -4, "3.0.0", "Would make two nodes know each other."),
    tells("cluster|myid", 2, "3.0.0", "Would return this node's id."),
    tells("cluster|myshardid", 2, "7.2.0", "Would return this shard's id."),
    tells("cluster|nodes", 2, "3.0.0", "Would list the nodes."),
    tells("cluster|replicas", 3, "5.0.0", "Would list a node's replicas.").flagged(flag::ADMIN | flag::STALE),
    changes("cluster|replicate", 3, "3.0.0", "Would make this node a replica."),
    changes("cluster|reset", -2, "3.0.0", "Would leave the cluster.").flagged(flag::ADMIN | flag::STALE | flag::NOSCRIPT),
    changes("cluster|saveconfig", 2, "3.0.0", "Would write the cluster's configuration."),
    changes("cluster|set-config-epoch", 3, "3.0.0", "Would set the epoch."),
    changes("cluster|setslot", -4, "3.0.0", "Would give a slot to a node."),
    tells("cluster|shards", 2, "7.0.0", "Would list the shards."),
    tells("cluster|slaves", 3, "3.0.0", "Would list a node's replicas.").flagged(flag::ADMIN | flag::STALE),
    tells("cluster|slots", 2, "3.0.0", "Would list which nodes have which slots."),
];
