//! The second process of the benchmark.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::SystemTime;

use crossbeam_channel::Receiver;

use super::hello::unhex;
use super::{Inbound, Keys, Message, Options, PeerName, PublicKey, Transport, TransportError};

pub(crate) fn failed(doing: &'static str) -> impl Fn(std::io::Error) -> TransportError {
    move |source| TransportError::io(doing, "benchmark peer", source)
}

/// Nanoseconds of the host's clock, the same in both processes.
pub(crate) fn wall() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64)
}

/// The second process: receives until the first one goes away. Its arguments come from [`bench_transport`](super::bench::bench_transport).
pub fn bench_peer(arguments: &[String]) -> Result<(), TransportError> {
    let refused = || failed("understand the arguments of")(std::io::ErrorKind::InvalidInput.into());
    match arguments {
        [what, address, size] if what == "raw" => {
            raw_sink(address, size.parse().map_err(|_| refused())?).map_err(failed("read at"))
        }
        [what, name, address, secret, server, token] if what == "sink" => {
            let bytes = token.get(..32).ok_or_else(refused)?;
            let mut options =
                Options::new(PeerName::new("sink")?, unhex(bytes).ok_or_else(refused)?);
            options.plain_tcp = name == "plain";
            let mut key = None;
            if name == "curve" {
                options.keys = Some(Keys::load(Path::new(secret))?);
                key = Some(server.parse::<PublicKey>()?);
            }
            let (transport, inbound) = Transport::start(options)?;
            let source = PeerName::new("source")?;
            transport.connect(&source, &address.parse()?, key)?;
            sink(&transport, &source, &inbound)
        }
        _ => Err(refused()),
    }
}

fn sink(
    transport: &Transport,
    source: &PeerName,
    inbound: &Receiver<Inbound>,
) -> Result<(), TransportError> {
    for event in inbound {
        let message = match event {
            Inbound::Connected { .. } => continue,
            Inbound::Lost { .. } => return Ok(()),
            Inbound::Message { message, .. } => message,
        };
        let Message { mut header, bodies } = message;
        for body in &bodies {
            std::hint::black_box((body.first(), body.last()));
        }
        if let Some(stamp) = header.get_mut(1..9) {
            let sent = <[u8; 8]>::try_from(&*stamp).map_or(0, u64::from_le_bytes);
            stamp.copy_from_slice(&wall().saturating_sub(sent).to_le_bytes());
        }
        drop(bodies);
        if header.is_empty() {
            continue;
        }
        transport.send(source, Message { header, bodies: Vec::new() })?;
    }
    Ok(())
}

fn raw_sink(address: &str, size: usize) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; size];
    while stream.read_exact(&mut buffer).is_ok() {
        stream.write_all(&[1])?;
    }
    Ok(())
}
