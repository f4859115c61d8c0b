//! Rows are videos, columns are texts.

use std::path::Path;

use anyhow::bail;
use modules::metrics::retrieval::{self, Recall, dual_softmax, inverted, r_mean, ranks, recall_of};
use modules::metrics::{Error, Matrix, length};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Report;
use super::file::{Indices, Numbers};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// Videos by texts.
    scores: Numbers,
    /// Texts by videos, where the other direction has scores of its own.
    back: Option<Numbers>,
    /// The right texts of each video.
    right: Option<Vec<Indices>>,
    /// The right videos of each text.
    right_videos: Option<Vec<Indices>>,
    #[serde(default = "both")]
    directions: Vec<Direction>,
    #[serde(default)]
    dual_softmax: Dual,
    rerank: Option<Rerank>,
}

fn both() -> Vec<Direction> {
    vec![Direction::V2t, Direction::T2v]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Direction {
    V2t,
    T2v,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Dual {
    scale: f64,
}

impl Default for Dual {
    fn default() -> Self {
        Self { scale: 1.0 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rerank {
    scores: Numbers,
    back: Option<Numbers>,
    #[serde(default = "first")]
    k: usize,
    #[serde(default)]
    by: By,
}

const fn first() -> usize {
    128
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum By {
    #[default]
    Scores,
    DualSoftmax,
}

/// One direction: queries in rows.
struct Side {
    name: &'static str,
    scores: Matrix,
    matching: Option<Matrix>,
    right: Vec<Vec<usize>>,
}

impl File {
    pub(super) fn report(&self, folder: &Path) -> anyhow::Result<Report> {
        let sides = self.sides(folder)?;
        let mut report = Report::default();
        let mut details = Map::new();
        for way in ["sim", "dsl", "match"] {
            let mut found = Vec::new();
            for side in &sides {
                let Some(scores) = self.scored(side, way)? else { continue };
                let ranks = ranks(&scores, &side.right)?;
                let recall = recall_of(&ranks)?;
                let prefix = format!("{way}.{}", side.name);
                add(&mut report, &prefix, &recall);
                details.insert(prefix, json!({ "ranks": ranks }));
                found.push(recall);
            }
            if let [there, back] = &found[..] {
                report.add(format!("{way}.r_mean"), r_mean(there, back));
            }
        }
        for side in &sides {
            let name = if side.name == "v2t" { "videos" } else { "texts" };
            report.count(name, side.scores.rows());
        }
        report.details = Value::Object(details);
        Ok(report)
    }

    /// Scores of one way to rank; none without the numbers for it.
    fn scored(&self, side: &Side, way: &str) -> anyhow::Result<Option<Matrix>> {
        let dual = || {
            dual_softmax(&side.scores, self.dual_softmax.scale)
                .map_err(|error| error.within("dual_softmax"))
        };
        Ok(match (way, &self.rerank, &side.matching) {
            ("sim", _, _) => Some(side.scores.clone()),
            ("dsl", _, _) => Some(dual()?),
            (_, Some(rerank), Some(matching)) => {
                let again = |first: &Matrix| {
                    retrieval::rerank(first, matching, rerank.k)
                        .map_err(|error| error.within("rerank"))
                };
                Some(match rerank.by {
                    By::Scores => again(&side.scores)?,
                    By::DualSoftmax => again(&dual()?)?,
                })
            }
            _ => None,
        })
    }

    fn sides(&self, folder: &Path) -> anyhow::Result<Vec<Side>> {
        if self.directions.is_empty() {
            bail!("`directions` is empty; give `v2t`, `t2v` or both");
        }
        let scores = self.scores.matrix("scores", folder)?;
        let (videos, texts) = (scores.rows(), scores.columns());
        let (of_videos, of_texts) = self.references(videos, texts)?;
        let matching = self.rerank.as_ref();
        let there = matching.map(|one| one.scores.matrix("rerank.scores", folder)).transpose()?;
        let mut sides = Vec::new();
        if self.directions.contains(&Direction::V2t) {
            let right = all_have("right", "video", "v2t", of_videos)?;
            let (scores, matching) = (scores.clone(), there.clone());
            sides.push(Side { name: "v2t", scores, matching, right });
        }
        if self.directions.contains(&Direction::T2v) {
            let scores = match &self.back {
                Some(back) => sized(back.matrix("back", folder)?, "back", texts, videos)?,
                None => scores.transposed(),
            };
            let back = matching.and_then(|one| one.back.as_ref());
            let back = back.map(|back| back.matrix("rerank.back", folder)).transpose()?;
            let back = back.map(|back| sized(back, "rerank.back", texts, videos)).transpose()?;
            let matching = back.or_else(|| there.map(|there| there.transposed()));
            let right = all_have("right_videos", "text", "t2v", of_texts)?;
            sides.push(Side { name: "t2v", scores, matching, right });
        }
        Ok(sides)
    }

    /// Right texts of each video, right videos of each text.
    fn references(&self, videos: usize, texts: usize) -> anyhow::Result<References> {
        let lists = |of: &[Indices]| of.iter().map(Indices::list).collect::<Vec<_>>();
        match (&self.right, &self.right_videos) {
            (Some(right), None) => {
                let right = lists(right);
                length("right", &right, videos, "one per row of `scores`")?;
                let back = inverted("right", &right, texts)?;
                Ok((right, back))
            }
            (None, Some(right)) => {
                let right = lists(right);
                length("right_videos", &right, texts, "one per column of `scores`")?;
                Ok((inverted("right_videos", &right, videos)?, right))
            }
            (None, None) => bail!("give `right`, the right texts of each video, or `right_videos`"),
            (Some(_), Some(_)) => bail!("`right` and `right_videos` say the same; give one"),
        }
    }
}

type References = (Vec<Vec<usize>>, Vec<Vec<usize>>);

fn sized(matrix: Matrix, at: &str, rows: usize, columns: usize) -> Result<Matrix, Error> {
    let found = (matrix.rows(), matrix.columns());
    if found == (rows, columns) {
        return Ok(matrix);
    }
    let found = format!("{} x {}", found.0, found.1);
    Err(Error::range(at, found, format!("{rows} x {columns}, as texts and videos of `scores`")))
}

/// Every query needs something to find.
fn all_have(
    at: &str,
    query: &str,
    direction: &str,
    right: Vec<Vec<usize>>,
) -> Result<Vec<Vec<usize>>, Error> {
    match right.iter().position(Vec::is_empty) {
        None => Ok(right),
        Some(missing) => {
            let other = "complete, or `directions` must leave it out";
            let value = format!("without anything right for {query} {missing} in {direction}");
            Err(Error::range(at, value, other))
        }
    }
}

fn add(report: &mut Report, prefix: &str, of: &Recall) {
    for (name, value) in [
        ("R@1", of.r1),
        ("R@5", of.r5),
        ("R@10", of.r10),
        ("mean_recall", of.mean),
        ("MdR", of.median_rank),
        ("MnR", of.mean_rank),
    ] {
        report.add(format!("{prefix}.{name}"), value);
    }
}
