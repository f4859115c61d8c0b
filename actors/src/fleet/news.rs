//! What agents send, read on a thread of its own.

use crossbeam_channel::{Receiver, Sender};

use crate::crew::deliver;
use crate::edge::Directory;
use crate::letter::{self, Letter};
use crate::message::Generation;
use crate::node_actor::Reporter;
use crate::transport::{Address, Inbound, Message, PeerName};

/// News from agents, for the supervisor's thread.
pub(super) enum News {
    Joined { process: String, version: u32, addresses: Vec<Address> },
    Open { process: String, generation: Generation },
    Wired { process: String, generation: Generation },
    Cut { process: String, generation: Generation, peer: String, why: String },
    Lost { process: String, why: String },
}

impl News {
    pub(super) fn process(&self) -> &str {
        match self {
            Self::Joined { process, .. }
            | Self::Open { process, .. }
            | Self::Wired { process, .. }
            | Self::Cut { process, .. }
            | Self::Lost { process, .. } => process,
        }
    }
}

/// Reads what agents send, on a thread of its own.
pub(super) struct Pump {
    pub(super) report: Reporter,
    pub(super) directory: Directory,
    pub(super) sender: Sender<News>,
}

impl Pump {
    pub(super) fn run(&self, inbound: &Receiver<Inbound>) {
        for happening in inbound {
            let news = match happening {
                Inbound::Connected { .. } => None,
                Inbound::Lost { peer, why } => {
                    Some(News::Lost { process: peer.to_string(), why: why.to_string() })
                }
                Inbound::Message { peer, message } => self.read(&peer, &message),
            };
            if let Some(news) = news
                && self.sender.send(news).is_err()
            {
                return;
            }
        }
    }

    fn read(&self, peer: &PeerName, message: &Message) -> Option<News> {
        let process = peer.to_string();
        match letter::read(message) {
            Ok(Letter::Join { version, addresses }) => {
                return Some(News::Joined { process, version, addresses });
            }
            Ok(Letter::Open { generation }) => return Some(News::Open { process, generation }),
            Ok(Letter::Wired { generation }) => return Some(News::Wired { process, generation }),
            Ok(Letter::Cut { generation, peer, why }) => {
                return Some(News::Cut { process, generation, peer, why });
            }
            Ok(Letter::Event(event)) => (self.report)(event),
            Ok(Letter::Parcel(header)) => match letter::read_parcel(header, message) {
                Ok(parcel) => deliver(&self.directory, &self.report, parcel),
                Err(error) => tracing::warn!(%peer, %error, "a parcel is left out"),
            },
            Ok(other) => tracing::warn!(%peer, ?other, "a letter is not for a supervisor"),
            Err(error) => tracing::warn!(%peer, %error, "a message is left out"),
        }
        None
    }
}
