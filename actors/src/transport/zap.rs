//! Who may connect over tcp: answers libzmq's questions (RFC 27, ZAP) from the allow-list.

use std::collections::BTreeMap;

use super::sockets::DOMAIN;
use super::{PeerName, PublicKey, TransportError};

/// Binds the handler; must come before any socket that asks.
pub(crate) fn bind(context: &zmq::Context) -> Result<zmq::Socket, TransportError> {
    let socket = context.socket(zmq::REP).map_err(TransportError::zmq("make the ZAP handler"))?;
    socket.set_linger(0).map_err(TransportError::zmq("make the ZAP handler"))?;
    socket.bind("inproc://zeromq.zap.01").map_err(TransportError::zmq("bind the ZAP handler"))?;
    Ok(socket)
}

/// Answers one question, if there is one. `known` tells whose a refused key is.
pub(crate) fn answer(
    socket: &zmq::Socket,
    allow: &BTreeMap<PublicKey, PeerName>,
    known: &BTreeMap<PublicKey, String>,
) -> bool {
    // Only libzmq itself reaches this inproc address, so a multipart is small.
    let Ok(question) = socket.recv_multipart(zmq::DONTWAIT) else { return false };
    let part = |index: usize| question.get(index).map_or(&[][..], Vec::as_slice);
    let key = (part(0) == b"1.0" && part(2) == DOMAIN.as_bytes() && part(5) == b"CURVE")
        .then(|| <[u8; 32]>::try_from(part(6)).ok().map(PublicKey))
        .flatten();
    let peer = key.and_then(|key| allow.get(&key));
    let (code, text, user) = match peer {
        Some(peer) => ("200", "OK", peer.as_str()),
        None => ("400", "unknown key", ""),
    };
    let parts: [&[u8]; 6] =
        [b"1.0", part(1), code.as_bytes(), text.as_bytes(), user.as_bytes(), b""];
    if let Err(error) = socket.send_multipart(parts, 0) {
        tracing::warn!(%error, "a ZAP answer was not sent");
    }
    if peer.is_none() {
        let from = String::from_utf8_lossy(part(3)).into_owned();
        tracing::warn!(from, "{}", refusal(key, allow, known));
    }
    true
}

/// What is said of a peer that was refused.
fn refusal(
    key: Option<PublicKey>,
    allow: &BTreeMap<PublicKey, PeerName>,
    known: &BTreeMap<PublicKey, String>,
) -> String {
    match key.map(|key| (key, known.get(&key))) {
        Some((_, Some(name))) => {
            let expected: Vec<String> = allow.values().map(|peer| format!("`{peer}`")).collect();
            let expected = expected.join(", ");
            format!("a peer with the key of `{name}` was refused: this run expects {expected}")
        }
        Some((key, None)) => format!("a peer with an unknown key was refused: {key}"),
        None => "a peer without a key was refused".to_owned(),
    }
}
