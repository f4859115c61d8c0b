//! Connecting: one socket per session, tried again until somebody answers.

use std::time::{Duration, Instant};

use super::clock::now;
use super::engine::Engine;
use super::hello::nonce;
use super::listen::monitor;
use super::wire::Kind;
use super::{Address, Cause, Inbound, PeerName, PublicKey, State};

/// An unanswered hello is repeated, on a new socket, after this long.
const UNANSWERED: Duration = Duration::from_secs(4);
/// Pause after a session has ended.
const AGAIN: Duration = Duration::from_millis(50);
/// Pause after a refusal.
const REFUSED: Duration = Duration::from_millis(1000);

/// A peer to which this side connects.
pub(crate) struct Dialer {
    pub(crate) address: Address,
    server: Option<PublicKey>,
    /// The socket and its monitor, while one is open.
    pub(crate) sockets: Option<(zmq::Socket, zmq::Socket)>,
    pub(crate) session: Option<u64>,
    pub(crate) generation: u64,
    pub(crate) nonce: [u8; 16],
    opened: Instant,
    again: Option<Instant>,
    /// The last refusal that was reported.
    pub(crate) refused: Option<Cause>,
}

impl Engine {
    /// Begins to connect to a peer, in place of an earlier address.
    pub(crate) fn dial(&mut self, peer: PeerName, address: Address, server: Option<PublicKey>) {
        if let Some(id) = self.dialers.get(&peer).and_then(|dialer| dialer.session) {
            self.end(id, Cause::Replaced);
        }
        if !self.current.contains_key(&peer) {
            self.inner.set_waiting(&peer);
        }
        let time = now();
        let dialer = Dialer {
            address,
            server,
            sockets: None,
            session: None,
            generation: 0,
            nonce: [0; 16],
            opened: time,
            again: Some(time),
            refused: None,
        };
        self.dialers.insert(peer, dialer);
        self.dial_again(time);
    }

    /// Opens the sockets whose time has come.
    pub(crate) fn dial_again(&mut self, time: Instant) {
        let due = |dialer: &Dialer| match dialer.again {
            Some(again) => again <= time,
            None => dialer.session.is_none() && time - dialer.opened > UNANSWERED,
        };
        let peers: Vec<_> = self
            .dialers
            .iter()
            .filter(|(_, dialer)| due(dialer))
            .map(|(peer, _)| peer.clone())
            .collect();
        for peer in peers {
            if let Err(reason) = self.open_socket(&peer, time) {
                self.dial_failed(&peer, Cause::Refused { reason });
            }
        }
    }

    fn open_socket(&mut self, peer: &PeerName, time: Instant) -> Result<(), String> {
        self.generation += 1;
        let generation = self.generation;
        let Some(dialer) = self.dialers.get_mut(peer) else { return Ok(()) };
        dialer.sockets = None;
        dialer.again = None;
        dialer.opened = time;
        dialer.generation = generation;
        dialer.nonce = nonce().map_err(|error| error.to_string())?;
        let (nonce, address, server) = (dialer.nonce, dialer.address.clone(), dialer.server);
        let ipc = matches!(address, Address::Ipc { .. });
        let socket = self
            .settings
            .dial(&self.context, &address, server)
            .map_err(|error| error.to_string())?;
        let failed = |error: zmq::Error| error.to_string();
        let monitor =
            monitor(&self.context, &socket, &format!("dialer-{generation}")).map_err(failed)?;
        let hello = self.hello(peer.as_str(), generation, &nonce, ipc).bytes(Kind::Hello);
        socket.connect(&address.to_string()).map_err(failed)?;
        socket.send(hello, zmq::DONTWAIT).map_err(failed)?;
        if let Some(dialer) = self.dialers.get_mut(peer) {
            dialer.sockets = Some((socket, monitor));
        }
        Ok(())
    }

    /// Reports why no session can be opened, once per reason, and tries again later.
    pub(crate) fn dial_failed(&mut self, peer: &PeerName, why: Cause) {
        let Some(dialer) = self.dialers.get_mut(peer) else { return };
        dialer.sockets = None;
        dialer.again = Some(now() + REFUSED);
        if dialer.refused.as_ref() == Some(&why) {
            return;
        }
        dialer.refused = Some(why.clone());
        if !self.current.contains_key(peer) {
            self.early.remove(peer);
            self.inner.set_state(peer, State::Lost { why: why.clone() });
            self.report(Inbound::Lost { peer: peer.clone(), why });
        }
    }

    /// Plans the next attempt after a session has ended.
    pub(crate) fn redial(&mut self, peer: &PeerName) {
        if let Some(dialer) = self.dialers.get_mut(peer) {
            dialer.sockets = None;
            dialer.session = None;
            dialer.again = Some(now() + AGAIN);
        }
    }

    /// Takes what libzmq says of a connecting socket.
    pub(crate) fn serve_monitor(&mut self, peer: &PeerName) {
        loop {
            let Some(dialer) = self.dialers.get_mut(peer) else { return };
            let Some((_, monitor)) = &dialer.sockets else { return };
            let Ok(event) = monitor.recv_multipart(zmq::DONTWAIT) else { return };
            let number = event
                .first()
                .and_then(|frame| frame.first_chunk::<2>())
                .map(|bytes| u16::from_le_bytes(*bytes));
            let number = u32::from(number.unwrap_or(0));
            match dialer.session {
                Some(id) if number == zmq_sys::ZMQ_EVENT_DISCONNECTED => {
                    self.end_soon(id, Cause::Disconnected)
                }
                Some(_) => {}
                None if number == zmq_sys::ZMQ_EVENT_DISCONNECTED => {
                    dialer.again = Some(now() + AGAIN)
                }
                None => {
                    let reason = match number {
                        zmq_sys::ZMQ_EVENT_HANDSHAKE_FAILED_AUTH => {
                            "the other side does not allow this key"
                        }
                        zmq_sys::ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL => {
                            "the other side speaks another protocol"
                        }
                        _ => "the handshake failed: the server key may be wrong",
                    };
                    self.dial_failed(peer, Cause::Refused { reason: reason.to_owned() });
                }
            }
        }
    }
}
