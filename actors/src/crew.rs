//! The nodes of one process: each an actor on its own thread.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::{Actor, Addr, Arbiter};

use crate::checkpointer::start_writer;
use crate::edge::{Directory, EdgeError};
use crate::edges::local::Local;
use crate::message::{Command, Event, Order, Parcel, What};
use crate::node_actor::{Factory, NodeActor, Reporter, Workplace};

/// Node actors by name, made when they are first told something.
pub struct Crew {
    workplace: Workplace,
    actors: BTreeMap<String, (Arbiter, Addr<NodeActor>)>,
}

impl Crew {
    /// No nodes yet.
    pub fn new(factory: Factory, report: Reporter, directory: Directory) -> Self {
        let writer = start_writer();
        Self {
            workplace: Workplace { factory, directory, report, writer },
            actors: BTreeMap::new(),
        }
    }

    /// Ways to all nodes.
    pub fn directory(&self) -> &Directory {
        &self.workplace.directory
    }

    /// Hands a command to its node; makes the actor when it is not there or has died.
    pub fn command(&mut self, command: Command) {
        let name = command.node.clone();
        let alive = self.actors.get(&name).is_some_and(|(_, addr)| addr.connected());
        if matches!(command.order, Order::Stop) {
            return self.fire(&name);
        }
        if !alive {
            self.fire(&name);
            self.hire(&name);
        }
        if let Some((_, addr)) = self.actors.get(&name) {
            // Commands are few and bounded by credits; losing one would hang the run.
            #[expect(clippy::disallowed_methods, reason = "commands must not be lost")]
            addr.do_send(command);
        }
    }

    /// Hands a parcel from another process to its node.
    pub fn deliver(&self, parcel: Parcel) {
        deliver(&self.workplace.directory, &self.workplace.report, parcel);
    }

    /// Drops an actor, without waiting for one that no longer answers.
    fn fire(&mut self, name: &str) {
        if let Some((arbiter, _)) = self.actors.remove(name) {
            arbiter.stop();
        }
    }

    /// Nodes whose actor has died, as after a panic outside of compute.
    pub fn dead(&self) -> Vec<String> {
        let dead = |(_, (_, addr)): &(&String, &(Arbiter, Addr<NodeActor>))| !addr.connected();
        self.actors.iter().filter(dead).map(|(name, _)| name.clone()).collect()
    }

    /// Makes the actor of a node on its own thread.
    fn hire(&mut self, name: &str) {
        let arbiter = Arbiter::new();
        let (name_, workplace) = (name.to_owned(), self.workplace.clone());
        let addr = NodeActor::start_in_arbiter(&arbiter.handle(), move |_| {
            NodeActor::new(&name_, workplace)
        });
        let edge = Local { node: name.to_owned(), mailbox: addr.clone().recipient() };
        self.workplace.directory.set(name, Arc::new(edge));
        self.actors.insert(name.to_owned(), (arbiter, addr));
    }

    /// Stops all nodes and their threads.
    pub fn stop(&mut self) {
        for (_, (arbiter, _)) in std::mem::take(&mut self.actors) {
            arbiter.stop();
        }
    }
}

/// Hands a parcel to its node; that it cannot be is reported as the node's failure.
pub(crate) fn deliver(directory: &Directory, report: &Reporter, parcel: Parcel) {
    let (generation, node) = (parcel.generation, parcel.to.node.clone());
    if let Err(error) = directory.send(parcel) {
        let final_ = matches!(error, EdgeError::Full { .. });
        let what = What::Failed { error: error.to_string(), final_ };
        report(Event { generation, node, what });
    }
}
