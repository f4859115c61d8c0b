//! Where nodes are: in this process, or with agents on other hosts.

use std::collections::BTreeMap;

use crate::crew::Crew;
use crate::message::{Command, Generation};

/// Why nodes cannot be gathered.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// An agent did not come up.
    #[error("[E601] the agent on `{host}` did not come up: {reason}")]
    Absent {
        /// Host.
        host: String,
        /// Why.
        reason: String,
    },
    /// An agent that somebody else must start never came.
    #[error("[E601] the agent of host `{host}` is missing: {reason}")]
    Missing {
        /// Host.
        host: String,
        /// What was waited for, and how to start it.
        reason: String,
    },
    /// The run was interrupted while it waited for agents.
    #[error("interrupted while waiting for agents")]
    Interrupted,
}

/// A host that runs an agent.
pub trait Remote: Send {
    /// Makes sure that the agent is there and knows the ways to all nodes.
    fn gather(&mut self, generation: Generation) -> Result<(), HostError>;
    /// Hands a command to a node on a host.
    fn command(&mut self, host: &str, command: Command);
    /// What was lost since the last call.
    fn lost(&mut self) -> Option<String>;
    /// Ends all agents.
    fn dismiss(&mut self);
}

/// All hosts of a run.
pub struct Hosts {
    crew: Crew,
    place: BTreeMap<String, String>,
    remote: Option<Box<dyn Remote>>,
}

impl Hosts {
    /// Everything in this process, except nodes that `place` puts elsewhere.
    pub fn new(
        crew: Crew,
        place: BTreeMap<String, String>,
        remote: Option<Box<dyn Remote>>,
    ) -> Self {
        Self { crew, place, remote }
    }

    pub(crate) fn gather(&mut self, generation: Generation) -> Result<(), HostError> {
        match &mut self.remote {
            Some(remote) => remote.gather(generation),
            None => Ok(()),
        }
    }

    pub(crate) fn command(&mut self, command: Command) {
        match (self.place.get(&command.node), &mut self.remote) {
            (Some(host), Some(remote)) => remote.command(host, command),
            _ => self.crew.command(command),
        }
    }

    /// What died, in words.
    pub(crate) fn lost(&mut self) -> Option<String> {
        if let Some(node) = self.crew.dead().first() {
            return Some(format!("`{node}` died"));
        }
        self.remote.as_mut().and_then(|remote| remote.lost())
    }

    pub(crate) fn dismiss(&mut self) {
        self.crew.stop();
        if let Some(remote) = &mut self.remote {
            remote.dismiss();
        }
    }
}
