//! Waiting for agents: until they answer, a process ends, the deadline, or an interrupt.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;

use super::Fleet;
use super::news::News;
use crate::clock::{Clock as _, Moment};
use crate::hosts::HostError;
use crate::transport::Address;

/// How long an agent that was started here may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same for agents that people or a scheduler start elsewhere.
const ELSEWHERE: Duration = Duration::from_secs(600);

/// Seconds until people are told for whom a run waits, and seconds between two notices.
const NOTICE: (f64, f64) = (3.0, 25.0);

impl Fleet {
    /// The next news of a process of this generation. A child that has ended, or silence beyond
    /// the deadline, is an error that names `late`.
    pub(super) fn next_news(&mut self, late: &str, deadline: Moment) -> Result<News, HostError> {
        let absent = |host: &str, reason: String| HostError::Absent { host: host.into(), reason };
        loop {
            if self.setup.stop.load(Ordering::SeqCst) {
                return Err(HostError::Interrupted);
            }
            match self.news.recv_timeout(Duration::from_millis(100)) {
                Ok(news) => {
                    let (Some(host), joined) = (self.host_of(news.process()), news.process())
                    else {
                        continue; // of a process that was replaced
                    };
                    let known = !self.agents[&host].addresses.is_empty();
                    match &news {
                        // One that did not join yet tries again by itself.
                        News::Lost { .. } if !known => continue,
                        News::Lost { why, .. } => {
                            let error = absent(&host, why.clone());
                            self.forget_addresses(&host);
                            return Err(error);
                        }
                        News::Cut { generation, .. } if *generation < self.generation => continue,
                        News::Cut { peer, why, .. } => {
                            let reason = format!("`{joined}` lost its way to `{peer}`: {why}");
                            return Err(absent(&host, reason));
                        }
                        _ => return Ok(news),
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Some((host, status)) = self.ended() {
                        return Err(absent(&host, format!("its process ended: {status}")));
                    }
                    if self.clock.now().since(deadline) > 0.0 {
                        return Err(self.too_late(late));
                    }
                    self.remind();
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(absent(late, "the fleet's thread is gone".to_owned()));
                }
            }
        }
    }

    pub(super) fn deadline(&self) -> Moment {
        self.later(self.patience().as_secs_f64())
    }

    /// One deadline for all agents of a start: the longest that one of them may need.
    fn patience(&self) -> Duration {
        let elsewhere = self.setup.hosts.values().any(|host| host.listen.is_some());
        if elsewhere { ELSEWHERE } else { PATIENCE }
    }

    fn later(&self, seconds: f64) -> Moment {
        Moment::at(self.clock.now().since(Moment::at(0.0)) + seconds)
    }

    /// Notices begin anew.
    pub(super) fn remind_later(&mut self) {
        self.notice = self.later(NOTICE.0);
    }

    /// Says for which agents this waits that somebody else must start.
    fn remind(&mut self) {
        if self.clock.now().since(self.notice) < 0.0 {
            return;
        }
        self.notice = self.later(NOTICE.1);
        for (host, agent) in self.agents.iter().filter(|(_, a)| a.addresses.is_empty()) {
            if let Some(listen) = &agent.config.listen {
                let (at, start) = self.how_to_start(host, listen);
                tracing::warn!("waiting for the agent of host `{host}` at {at}; {start}");
            }
        }
    }

    /// Why an agent that did not answer in time is missing.
    fn too_late(&self, host: &str) -> HostError {
        let (seconds, agent) = (self.patience().as_secs(), &self.agents[host]);
        let host = host.to_owned();
        match &agent.config.listen {
            Some(listen) if !agent.came => {
                let (at, start) = self.how_to_start(&host, listen);
                let reason = format!("it did not come to {at} within {seconds} s; {start}");
                HostError::Missing { host, reason }
            }
            _ => HostError::Absent { host, reason: format!("no answer within {seconds} s") },
        }
    }

    /// Where an agent is expected, and what starts it there.
    fn how_to_start(&self, host: &str, listen: &str) -> (String, String) {
        let Ok(Address::Tcp { host: name, port }) = listen.parse() else {
            return (listen.to_owned(), "start it".to_owned());
        };
        let open = self.transport.addresses().into_iter().find_map(|address| match address {
            // The system has chosen a port where none was given.
            Address::Tcp { host, port: open } if host == name && [0, open].contains(&port) => {
                Some(open)
            }
            _ => None,
        });
        let port = open.unwrap_or(port);
        // Where this machine is seen from elsewhere is not known here.
        let any = ["0.0.0.0", "::", "[::]", "*"].contains(&name.as_str());
        let reached = if any { "THIS_MACHINE" } else { &name };
        let keys =
            self.setup.keys.as_ref().map_or("KEYS".into(), |keys| keys.display().to_string());
        let start = format!(
            "start it with `playhouse agent --connect tcp://{reached}:{port} --keys {keys} --name {host}`"
        );
        (format!("tcp://{name}:{port}"), start)
    }
}
