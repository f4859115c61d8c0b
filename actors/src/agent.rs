//! One process on a host: makes nodes when the supervisor asks, and passes frames on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use serde::{Deserialize, Serialize};

use crate::crew::Crew;
use crate::edge::Directory;
use crate::edges::remote::Remote;
use crate::letter::{self, Letter, VERSION};
use crate::message::{Event, Generation};
use crate::node_actor::{Factory, Reporter};
use crate::transport::{
    Address, Inbound, Keys, Message, Options, PeerName, PublicKey, Transport, TransportError,
};

/// Name of the supervisor's process.
pub const SUPERVISOR: &str = "supervisor";

/// Frames in one message: weights travel together, one frame for each parameter.
pub(crate) const PARAMETERS: usize = 8192;

/// How long an agent waits for the supervisor before it gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an agent needs to find its supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ticket {
    /// Name of the agent.
    pub name: String,
    /// Address of the supervisor.
    pub supervisor: Address,
    /// The supervisor's public key; needed for TCP.
    pub key: Option<PublicKey>,
    /// Secret of the run, for processes of one host.
    pub token: [u8; 16],
    /// Addresses to listen at.
    pub listen: Vec<Address>,
}

/// Why an agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The transport does not work.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The supervisor did not answer.
    #[error("[E602] no supervisor answers at {address} within {} s", PATIENCE.as_secs())]
    NoSupervisor {
        /// Where it should be.
        address: Address,
    },
    /// The supervisor is gone.
    #[error("[E603] the supervisor is gone: {why}")]
    Lost {
        /// Why.
        why: String,
    },
}

/// Works for a supervisor until it is dismissed.
pub fn run(ticket: &Ticket, keys: Option<Keys>, factory: Factory) -> Result<(), AgentError> {
    let system = actix::System::new();
    let _inside = system.block_on(async { actix::System::current() });
    let mut options = Options::new(PeerName::new(&ticket.name)?, ticket.token);
    options.bind.clone_from(&ticket.listen);
    options.limits.bodies = PARAMETERS;
    options.keys = keys;
    let supervisor = PeerName::new(SUPERVISOR)?;
    if let Some(key) = ticket.key {
        options.allow.push((key, supervisor.clone()));
    }
    let (transport, inbound) = Transport::start(options)?;
    let transport = Arc::new(transport);
    transport.connect(&supervisor, &ticket.supervisor, ticket.key)?;
    wait_for(&supervisor, ticket, &inbound)?;
    let join = Letter::Join { version: VERSION, addresses: transport.addresses() };
    tell(&transport, &supervisor, &join);
    let (reporter, boss) = (transport.clone(), supervisor.clone());
    let report: Reporter =
        Arc::new(move |event: Event| tell(&reporter, &boss, &Letter::Event(event)));
    let crew = Crew::new(factory, report, Directory::default());
    let mut agent = Agent {
        transport,
        supervisor,
        crew,
        generation: 0,
        others: BTreeSet::new(),
        present: BTreeSet::new(),
        dialled: BTreeMap::new(),
        wiring: false,
    };
    let outcome = agent.serve(&inbound);
    agent.crew.stop();
    outcome
}

fn wait_for(
    supervisor: &PeerName,
    ticket: &Ticket,
    inbound: &Receiver<Inbound>,
) -> Result<(), AgentError> {
    let absent = || AgentError::NoSupervisor { address: ticket.supervisor.clone() };
    loop {
        match inbound.recv_timeout(PATIENCE) {
            Ok(Inbound::Connected { peer, .. }) if peer == *supervisor => return Ok(()),
            Ok(Inbound::Lost { peer, why }) if peer == *supervisor => {
                return Err(AgentError::Lost { why: why.to_string() });
            }
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return Err(absent());
            }
        }
    }
}

/// Sends a letter; a supervisor that is gone is noticed by the transport.
fn tell(transport: &Transport, to: &PeerName, letter: &Letter) {
    match letter::write(letter) {
        Ok(message) => {
            if let Err(error) = transport.send(to, message) {
                tracing::warn!(%error, "a letter was not sent");
            }
        }
        Err(error) => tracing::error!(%error, "a letter could not be written"),
    }
}

struct Agent {
    transport: Arc<Transport>,
    supervisor: PeerName,
    crew: Crew,
    generation: Generation,
    /// Other agents of this generation.
    others: BTreeSet<PeerName>,
    /// Agents with an open session.
    present: BTreeSet<PeerName>,
    /// Agents that this one connects to.
    dialled: BTreeMap<PeerName, Address>,
    /// Whether the supervisor still waits to hear that all others are reached.
    wiring: bool,
}

impl Agent {
    fn serve(&mut self, inbound: &Receiver<Inbound>) -> Result<(), AgentError> {
        for happening in inbound {
            match happening {
                Inbound::Connected { peer, .. } => {
                    self.present.insert(peer);
                    self.report_wired();
                }
                Inbound::Lost { peer, why } if peer == self.supervisor => {
                    return Err(AgentError::Lost { why: why.to_string() });
                }
                Inbound::Lost { peer, why } => self.lost(&peer, &why.to_string()),
                Inbound::Message { peer, message } => {
                    if !self.read(&peer, &message)? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Frames to or from another agent may be lost: the supervisor must know.
    fn lost(&mut self, peer: &PeerName, why: &str) {
        let known = self.present.remove(peer) && self.others.contains(peer);
        if known && !self.wiring {
            let (generation, why) = (self.generation, why.to_owned());
            let letter = Letter::Cut { generation, peer: peer.to_string(), why };
            tell(&self.transport, &self.supervisor, &letter);
        }
    }

    fn report_wired(&mut self) {
        if self.wiring && self.others.is_subset(&self.present) {
            self.wiring = false;
            let letter = Letter::Wired { generation: self.generation };
            tell(&self.transport, &self.supervisor, &letter);
        }
    }

    /// Acts on a letter; false when the run is over.
    fn read(&mut self, peer: &PeerName, message: &Message) -> Result<bool, AgentError> {
        let letter = match letter::read(message) {
            Ok(letter) => letter,
            Err(error) => {
                tracing::warn!(%peer, %error, "a message is left out");
                return Ok(true);
            }
        };
        let boss = *peer == self.supervisor;
        match letter {
            Letter::Parcel(header) => match letter::read_parcel(header, message) {
                Ok(parcel) => self.crew.deliver(parcel),
                Err(error) => tracing::warn!(%peer, %error, "a parcel is left out"),
            },
            Letter::Command(command) if boss => self.crew.command(command),
            Letter::Wire { generation, places, allow } if boss => {
                self.generation = generation;
                self.wire(places, allow)?;
                tell(&self.transport, &self.supervisor, &Letter::Open { generation });
            }
            Letter::Connect { to } if boss => {
                self.connect(to)?;
                self.report_wired();
            }
            Letter::Dismiss if boss => return Ok(false),
            other => tracing::warn!(%peer, ?other, "a letter is not for an agent"),
        }
        Ok(true)
    }

    /// Makes the ways of a new generation, and drops processes that have no part in it.
    fn wire(
        &mut self,
        places: BTreeMap<String, String>,
        allow: BTreeMap<String, PublicKey>,
    ) -> Result<(), AgentError> {
        let others = allow.keys().map(PeerName::new).collect::<Result<BTreeSet<_>, _>>()?;
        for gone in self.others.difference(&others) {
            self.transport.forget(gone)?;
            self.present.remove(gone);
            self.dialled.remove(gone);
        }
        for (name, key) in allow {
            self.transport.allow(key, PeerName::new(name)?);
        }
        for (node, process) in places {
            let peer = PeerName::new(process)?;
            let edge = Remote { peer, transport: self.transport.clone() };
            self.crew.directory().set(&node, Arc::new(edge));
        }
        (self.others, self.wiring) = (others, true);
        Ok(())
    }

    fn connect(
        &mut self,
        to: BTreeMap<String, (Address, Option<PublicKey>)>,
    ) -> Result<(), AgentError> {
        for (name, (address, key)) in to {
            let name = PeerName::new(name)?;
            if self.dialled.get(&name) != Some(&address) {
                self.present.remove(&name);
                self.transport.connect(&name, &address, key)?;
                self.dialled.insert(name, address);
            }
        }
        Ok(())
    }
}

/// Reads a ticket file, which only its owner may read.
pub fn read_ticket(path: &Path) -> std::io::Result<Ticket> {
    let text = std::fs::read(path)?;
    serde_json::from_slice(&text).map_err(std::io::Error::other)
}
