use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use actors::agent::{self, AgentError, SUPERVISOR, Ticket};
use actors::transport::{Address, Keys, PublicKey};
use anyhow::{Context as _, bail};

use crate::compose;

/// Work as an agent: make nodes for a supervisor on another process or machine
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address of the supervisor, for example `tcp://10.0.0.1:5555`
    #[arg(long, requires = "keys", requires = "name", conflicts_with = "ticket")]
    connect: Option<Address>,
    /// Folder with `<name>.key_secret` and `supervisor.key`, as `playhouse keys` makes them
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Name of this host in the experiment
    #[arg(long)]
    name: Option<String>,
    /// Address to listen at for other agents
    #[arg(long, default_value = "tcp://0.0.0.0:0")]
    listen: Address,
    /// Ticket file, written by a supervisor on this machine
    #[arg(long, value_name = "FILE")]
    ticket: Option<PathBuf>,
}

/// Serves until the supervisor dismisses this agent.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (ticket, keys) = match (&args.ticket, &args.connect, &args.keys, &args.name) {
        (Some(path), ..) => {
            let ticket = agent::read_ticket(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let secret = path.with_extension("key_secret");
            let keys = if secret.exists() { Some(Keys::load(&secret)?) } else { None };
            let _ = fs::remove_file(path); // it is used up
            (ticket, keys)
        }
        (None, Some(address), Some(folder), Some(name)) => {
            let keys = Keys::load(&folder.join(format!("{name}.key_secret")))?;
            let key = PublicKey::load(&folder.join(format!("{SUPERVISOR}.key")))?;
            let ticket = Ticket {
                name: name.clone(),
                supervisor: address.clone(),
                key: Some(key),
                token: [0; 16],
                listen: vec![args.listen.clone()],
            };
            (ticket, Some(keys))
        }
        _ => bail!("an agent needs `--connect`, `--keys` and `--name`"),
    };
    match agent::run(&ticket, keys, compose::factory()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error @ (AgentError::Lost { .. } | AgentError::NoSupervisor { .. })) => {
            eprintln!("error: {error}");
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error.into()),
    }
}
