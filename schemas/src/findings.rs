//! What the checks of all stages found, each problem once.

use std::collections::BTreeSet;

use crate::diagnostic::{Diagnostic, Report};
use crate::experiment::StageConfig;

/// Problems of the stages. One that only some stages have says which stage it is.
#[derive(Default)]
pub(crate) struct Findings {
    found: Vec<Finding>,
}

struct Finding {
    problem: Diagnostic,
    /// The first stage that has it.
    stage: String,
    /// How many stages do.
    stages: usize,
    /// Whether the node works in one of them.
    works: bool,
}

impl Findings {
    /// Adds what is wrong in one stage, in which the nodes `active` work.
    pub(crate) fn add(&mut self, stage: &StageConfig, report: Report, active: &BTreeSet<String>) {
        for problem in report.into_problems() {
            let node = problem.path.strip_prefix("graph.").and_then(|rest| rest.split('.').next());
            let works = node.is_none_or(|node| active.contains(node));
            match self.found.iter_mut().find(|finding| finding.problem == problem) {
                Some(finding) => {
                    finding.stages += 1;
                    finding.works |= works;
                }
                None => {
                    let stage = stage.name.clone();
                    self.found.push(Finding { problem, stage, stages: 1, works });
                }
            }
        }
    }

    /// Reports everything, of `stages` stages in all. A node that rests in a stage may not fit what
    /// the stage changes.
    pub(crate) fn report(self, stages: usize, report: &mut Report) {
        for Finding { mut problem, stage, stages: count, works } in self.found {
            if count < stages && !works {
                continue;
            }
            if count < stages && problem.path.starts_with("graph.") {
                problem.message = format!("in stage `{stage}`: {}", problem.message);
            }
            report.add(problem);
        }
    }
}
