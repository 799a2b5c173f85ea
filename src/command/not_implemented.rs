//! Commands of Redis 7.2 that are not implemented: answered as unknown, and listed in
//! `redis-compat.md`. A command that is implemented gets a row in its family's file and loses its
//! line here.

use super::{Command, Compatibility};

const fn row(
    group: &'static str,
    name: &'static str,
    arity: i32,
    since: &'static str,
    summary: &'static str,
) -> Command {
    Command {
        name,
        arity,
        group,
        since,
        summary,
        compatibility: Compatibility::NotYet,
        ..Command::DEFAULT
    }
}

impl Command {
    const fn with(self, subcommands: &'static [Command]) -> Command {
        Command { subcommands, ..self }
    }
}

#[rustfmt::skip]
pub static COMMANDS: &[Command] = &[
    row("generic", "migrate", -6, "2.6.0", "Moves keys to another server."),
    row("server", "failover", -1, "6.2.0", "Hands the role of master to a replica."),
    row("server", "module", -2, "4.0.0", "Commands about modules.").with(MODULE),
    row("server", "psync", -3, "2.8.0", "For replication between servers."),
    row("server", "replconf", -1, "3.0.0", "For replication between servers."),
    row("server", "replicaof", 3, "5.0.0", "Makes the server a replica of another."),
    row("server", "restore-asking", -4, "3.0.0", "For moving keys between the servers of a cluster."),
    row("server", "slaveof", 3, "1.0.0", "Makes the server a replica of another."),
    row("cluster", "asking", 1, "3.0.0", "Allows a command on a slot that is being moved here."),
    row("cluster", "cluster", -2, "3.0.0", "Commands about the cluster.").with(CLUSTER),
    row("cluster", "readonly", 1, "3.0.0", "Allows reads from a replica of a cluster."),
    row("cluster", "readwrite", 1, "3.0.0", "Ends READONLY."),
];

#[rustfmt::skip]
const MODULE: &[Command] = &[
    row("server", "module|help", 2, "5.0.0", "Lists the subcommands."),
    row("server", "module|list", 2, "4.0.0", "Lists the modules."),
    row("server", "module|load", -3, "4.0.0", "Loads a module."),
    row("server", "module|loadex", -3, "7.0.0", "Loads a module with settings."),
    row("server", "module|unload", 3, "4.0.0", "Unloads a module."),
];

#[rustfmt::skip]
const CLUSTER: &[Command] = &[
    row("cluster", "cluster|addslots", -3, "3.0.0", "Takes slots."),
    row("cluster", "cluster|addslotsrange", -4, "7.0.0", "Takes ranges of slots."),
    row("cluster", "cluster|bumpepoch", 2, "3.0.0", "Raises the epoch."),
    row("cluster", "cluster|count-failure-reports", 3, "3.0.0", "Counts who thinks that a node failed."),
    row("cluster", "cluster|countkeysinslot", 3, "3.0.0", "Counts the keys of a slot."),
    row("cluster", "cluster|delslots", -3, "3.0.0", "Gives slots up."),
    row("cluster", "cluster|delslotsrange", -4, "7.0.0", "Gives ranges of slots up."),
    row("cluster", "cluster|failover", -2, "3.0.0", "Makes this replica the master."),
    row("cluster", "cluster|flushslots", 2, "3.0.0", "Gives all slots up."),
    row("cluster", "cluster|forget", 3, "3.0.0", "Forgets a node."),
    row("cluster", "cluster|getkeysinslot", 4, "3.0.0", "Lists keys of a slot."),
    row("cluster", "cluster|help", 2, "5.0.0", "Lists the subcommands."),
    row("cluster", "cluster|info", 2, "3.0.0", "Tells of the cluster's state."),
    row("cluster", "cluster|keyslot", 3, "3.0.0", "Returns the slot of a key."),
    row("cluster", "cluster|links", 2, "7.0.0", "Lists connections between nodes."),
    row("cluster", "cluster|meet", -4, "3.0.0", "Makes two nodes know each other."),
    row("cluster", "cluster|myid", 2, "3.0.0", "Returns this node's id."),
    row("cluster", "cluster|myshardid", 2, "7.2.0", "Returns this shard's id."),
    row("cluster", "cluster|nodes", 2, "3.0.0", "Lists the nodes."),
    row("cluster", "cluster|replicas", 3, "5.0.0", "Lists a node's replicas."),
    row("cluster", "cluster|replicate", 3, "3.0.0", "Makes this node a replica."),
    row("cluster", "cluster|reset", -2, "3.0.0", "Leaves the cluster."),
    row("cluster", "cluster|saveconfig", 2, "3.0.0", "Writes the cluster's configuration."),
    row("cluster", "cluster|set-config-epoch", 3, "3.0.0", "Sets the epoch."),
    row("cluster", "cluster|setslot", -4, "3.0.0", "Gives a slot to a node."),
    row("cluster", "cluster|shards", 2, "7.0.0", "Lists the shards."),
    row("cluster", "cluster|slaves", 3, "3.0.0", "Lists a node's replicas."),
    row("cluster", "cluster|slots", 2, "3.0.0", "Lists which nodes have which slots."),
];
