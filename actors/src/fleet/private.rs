//! Keys, secrets and files that nobody else may read.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::agent::SUPERVISOR;
use crate::transport::{Keys, PublicKey, TransportError};

/// The supervisor's keys: from a folder, or made for this run.
pub(super) fn own_keys(folder: Option<&Path>) -> Result<Keys, TransportError> {
    match folder {
        Some(folder) => Keys::load(&folder.join(format!("{SUPERVISOR}.key_secret"))),
        None => Keys::generate(),
    }
}

/// Whose the public keys in a folder are. Those that cannot be read are nobody's.
pub(super) fn known_keys(folder: &Path) -> BTreeMap<PublicKey, String> {
    let paths = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let keys = paths.filter(|path| path.extension().is_some_and(|ending| ending == "key"));
    keys.filter_map(|path| {
        let name = path.file_stem()?.to_str()?.to_owned();
        Some((PublicKey::load(&path).ok()?, name))
    })
    .collect()
}

/// A random secret for processes of one host.
pub(super) fn random() -> Result<[u8; 16], TransportError> {
    let keys = Keys::generate()?;
    let mut secret = [0; 16];
    secret.copy_from_slice(&keys.public().bytes()[..16]);
    Ok(secret)
}

/// Makes a folder that nobody else may enter, under a name that nobody else knows.
pub(super) fn private_folder(parent: &Path) -> Result<PathBuf, TransportError> {
    let name: String = random()?[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let folder = parent.join(format!("playhouse-{name}"));
    let made = fs::DirBuilder::new().mode(0o700).create(&folder);
    made.map_err(|error| TransportError::io("make", &folder, error))?;
    Ok(folder)
}

/// Writes a file for this user alone.
pub(super) fn write_private(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text)
}
