//! Names of peers and where they listen.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::TransportError;

/// The name of a process, unique in a run: 1 to 64 of `[A-Za-z0-9_.-/:]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerName(String);

impl PeerName {
    /// Longest name, bytes.
    pub const MAX: usize = 64;

    /// Checks a name.
    pub fn new(name: impl Into<String>) -> Result<Self, TransportError> {
        let name = name.into();
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-/:".contains(&byte);
        if name.is_empty() || name.len() > Self::MAX || !name.bytes().all(valid) {
            return Err(TransportError::PeerName { name: name.chars().take(Self::MAX).collect() });
        }
        Ok(Self(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for PeerName {
    type Error = TransportError;
    fn try_from(name: String) -> Result<Self, TransportError> {
        Self::new(name)
    }
}

impl From<PeerName> for String {
    fn from(name: PeerName) -> Self {
        name.0
    }
}

impl FromStr for PeerName {
    type Err = TransportError;
    fn from_str(name: &str) -> Result<Self, TransportError> {
        Self::new(name)
    }
}

/// Where a peer listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// A unix socket on the same host: `ipc:///run/play/supervisor`.
    Ipc {
        /// An absolute path of at most 96 bytes in a directory of mode 0700.
        path: PathBuf,
    },
    /// A host on the network: `tcp://10.0.0.2:7001`.
    Tcp {
        /// A name or a numeric address, IPv6 without brackets.
        host: String,
        /// The port; 0 lets the system choose when binding.
        port: u16,
    },
}

impl Address {
    /// Longest path: `sun_path` holds 108 bytes and the side socket adds a suffix.
    const MAX_PATH: usize = 96;

    fn refused(text: &str) -> TransportError {
        TransportError::Address { text: text.chars().take(200).collect() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipc { path } => write!(f, "ipc://{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

impl FromStr for Address {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, TransportError> {
        let refused = || Self::refused(text);
        if let Some(path) = text.strip_prefix("ipc://") {
            let valid =
                path.starts_with('/') && path.len() <= Self::MAX_PATH && !path.contains('\0');
            return if valid { Ok(Self::Ipc { path: path.into() }) } else { Err(refused()) };
        }
        let rest = text.strip_prefix("tcp://").ok_or_else(refused)?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(refused)?;
        let port = port.parse().map_err(|_| refused())?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bare {
            Some(bare) => bare,
            None if host.contains(':') => return Err(refused()),
            None => host,
        };
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-:%".contains(&byte);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(valid) {
            return Err(refused());
        }
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

impl TryFrom<String> for Address {
    type Error = TransportError;
    fn try_from(text: String) -> Result<Self, TransportError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_survives_its_text() {
        for text in
            ["ipc:///run/play/a", "tcp://10.0.0.2:7001", "tcp://[::1]:0", "tcp://gpu-1.lan:65535"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_address_that_no_socket_could_have_is_refused() {
        let long = format!("ipc:///{}", "x".repeat(96));
        let texts = [
            "",
            "ipc://relative",
            "tcp://:1",
            "tcp://a:70000",
            "tcp://::1:5",
            "http://a:1",
            "tcp://*:1",
            &long,
        ];
        for text in texts {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".*") {
            let _ = text.parse::<Address>();
            let _ = PeerName::new(text);
        }
    }
}
