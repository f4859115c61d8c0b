//! CURVE key pairs and their files.
//!
//! `name.key` holds the public key, `name.key_secret` (mode 0600) both, in the text form that pyzmq's
//! `zmq.auth` and czmq's `zcert` read and write: a `curve` section with Z85 keys of 40 characters.

use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::TransportError;

const ALPHABET: &[u8; 85] =
    b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

/// Longest key file that is read, bytes.
const MAX_FILE: u64 = 4096;

/// The public half of a key pair; its text is Z85.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub(crate) [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = TransportError;
    fn from_str(text: &str) -> Result<Self, TransportError> {
        decode(text).map(Self).ok_or_else(|| TransportError::Key { path: "text".into() })
    }
}

impl TryFrom<String> for PublicKey {
    type Error = TransportError;
    fn try_from(text: String) -> Result<Self, TransportError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

/// A key pair. Its `Debug` shows the public half only.
#[derive(Clone)]
pub struct Keys {
    public: PublicKey,
    secret: [u8; 32],
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys {{ public: {} }}", self.public)
    }
}

impl Keys {
    /// Makes a new pair from the system's random numbers.
    pub fn generate() -> Result<Self, TransportError> {
        let pair = zmq::CurveKeyPair::new().map_err(|_| TransportError::CurveMissing)?;
        Ok(Self { public: PublicKey(pair.public_key), secret: pair.secret_key })
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Writes `name.key` and `name.key_secret` into a directory, replacing neither.
    ///
    /// Returns both paths, public first.
    pub fn save(&self, directory: &Path, name: &str) -> Result<(PathBuf, PathBuf), TransportError> {
        let public = directory.join(format!("{name}.key"));
        let secret = directory.join(format!("{name}.key_secret"));
        let head = "#   ZeroMQ CURVE certificate, made by playhouse\n\nmetadata\ncurve\n";
        let first = format!("{head}    public-key = \"{}\"\n", self.public);
        let second = format!("{first}    secret-key = \"{}\"\n", encode(&self.secret));
        write_new(&secret, &second, 0o600)?;
        write_new(&public, &first, 0o644)?;
        Ok((public, secret))
    }

    /// Reads a secret key file; one that others may read is refused.
    pub fn load(path: &Path) -> Result<Self, TransportError> {
        let metadata =
            fs::metadata(path).map_err(|source| TransportError::io("read", path, source))?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TransportError::SecretOpen { path: path.into(), mode });
        }
        let text = read(path)?;
        let refused = || TransportError::Key { path: path.into() };
        let public = field(&text, "public-key").ok_or_else(refused)?;
        let secret = field(&text, "secret-key").ok_or_else(refused)?;
        Ok(Self { public: PublicKey(public), secret })
    }
}

impl PublicKey {
    /// Reads the public key of a `.key` or `.key_secret` file.
    pub fn load(path: &Path) -> Result<Self, TransportError> {
        let text = read(path)?;
        field(&text, "public-key")
            .map(Self)
            .ok_or_else(|| TransportError::Key { path: path.into() })
    }
}

fn read(path: &Path) -> Result<String, TransportError> {
    let failed = |source| TransportError::io("read", path, source);
    if fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(TransportError::Key { path: path.into() });
    }
    fs::read_to_string(path).map_err(failed)
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), TransportError> {
    let failed = |source| TransportError::io("write", path, source);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

/// The value of `name = "value"` on a line of its own.
fn field(text: &str, name: &str) -> Option<[u8; 32]> {
    let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix(name))?;
    decode(line.trim_start().strip_prefix('=')?.trim().trim_matches('"'))
}

fn encode(bytes: &[u8; 32]) -> String {
    let mut text = String::with_capacity(40);
    for word in bytes.chunks_exact(4) {
        let value = word.iter().fold(0u32, |value, byte| (value << 8) | u32::from(*byte));
        for power in [85u32.pow(4), 85u32.pow(3), 85u32.pow(2), 85, 1] {
            text.push(ALPHABET[(value / power % 85) as usize] as char);
        }
    }
    text
}

fn decode(text: &str) -> Option<[u8; 32]> {
    if text.len() != 40 {
        return None;
    }
    let mut key = [0; 32];
    for (word, out) in text.as_bytes().chunks_exact(5).zip(key.chunks_exact_mut(4)) {
        let mut value = 0u64;
        for byte in word {
            value = value * 85 + ALPHABET.iter().position(|letter| letter == byte)? as u64;
        }
        out.copy_from_slice(&u32::try_from(value).ok()?.to_be_bytes());
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pair_survives_its_files_and_the_secret_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Keys::generate().unwrap();
        let (public, secret) = keys.save(directory.path(), "agent").unwrap();
        let back = Keys::load(&secret).unwrap();
        assert_eq!((back.public, back.secret), (keys.public, keys.secret));
        assert_eq!(PublicKey::load(&public).unwrap(), keys.public);
        assert!(!fs::read_to_string(&public).unwrap().contains("secret-key"));
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(keys.save(directory.path(), "agent").is_err(), "a pair is never overwritten");
        assert!(!format!("{keys:?}").contains(&encode(&keys.secret)));
    }

    #[test]
    fn a_secret_that_others_may_read_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let (_, secret) = Keys::generate().unwrap().save(directory.path(), "a").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Keys::load(&secret).unwrap_err().to_string();
        assert!(error.contains("chmod 600") && error.contains("640"), "{error}");
    }

    #[test]
    fn the_text_is_that_of_libzmq() {
        let pair = zmq::CurveKeyPair::new().unwrap();
        assert_eq!(encode(&pair.public_key), zmq::z85_encode(&pair.public_key).unwrap());
    }

    proptest! {
        #[test]
        fn any_text_is_a_key_or_refused(text in ".{0,60}", bytes: [u8; 32]) {
            let _ = decode(&text);
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }
    }
}
