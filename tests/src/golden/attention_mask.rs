//! `internvideo2_attention_mask`: weighted sampling with given noise, and gathering by the mask.

use std::path::Path;

use burn::tensor::Tensor;
use modules::layers::tokens;
use modules::layers::visible::{self, Per};
use modules::masks::attention::Config;
use schemas::dims::keep;

use super::alignment;
use super::fixture::{Array, Fixture};
use super::network::autodiff;
use super::report::Report;

fn floats(array: &Array) -> Vec<f32> {
    array.values.iter().map(|v| *v as f32).collect()
}

/// Checks order, mask and counts of one way of masking; returns the visible indices.
fn check_way(report: &mut Report, fixture: &Fixture, way: &str, per: Per) -> Array {
    let [batch, frames, patches] =
        ["batch", "frames", "tokens_per_frame"].map(|field| fixture.count(field));
    let mut take = |name: &str| report.take(&format!("{way}.{name}"));
    let (scores, noise) = (take("scores"), take("exp_noise"));
    let (order, mask) = (take("order"), take("mask_with_cls"));
    let (scores, noise) = (floats(&scores), floats(&noise));
    let group = order.shape[1];
    let found: Vec<f64> = scores
        .chunks(group)
        .zip(noise.chunks(group))
        .flat_map(|(s, e)| visible::order(s, e))
        .map(|i| i as f64)
        .collect();
    report.same(&format!("{way}.order"), &found, &order.values);
    let config = Config { ratio: fixture.number("mask_ratio"), per };
    let clip = frames * patches;
    let pairs = scores.chunks(clip).zip(noise.chunks(clip));
    let chosen: Vec<f64> =
        pairs.flat_map(|(s, e)| config.choose(s, e, patches)).map(|i| i as f64).collect();
    let expected = alignment::visible(&mask);
    report.same(&format!("{way}.mask_with_cls"), &chosen, &expected.values);
    report.same(&format!("{way}: samples"), &expected.shape[0], &batch);
    expected
}

/// Checks the fixture.
pub fn check(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let mut report = Report::new(&fixture, fixture.arrays("io.safetensors"));
    let frame = check_way(&mut report, &fixture, "pretrain", Per::Frame);
    check_way(&mut report, &fixture, "distill", Per::Clip);
    let (patches, ratio) = (fixture.count("tokens_per_frame"), fixture.number("mask_ratio"));
    let clip = fixture.count("frames") * patches;
    report.same("per frame", &keep(patches, ratio), &fixture.count("visible_per_frame"));
    report.same("whole clip", &keep(clip, ratio), &fixture.count("visible_whole_clip"));

    let device = autodiff().inner();
    let index = frame.int::<2>(&device);
    for (name, front) in [("clip_targets", 1), ("mae_targets", 0)] {
        let all = report.take(&format!("pretrain.{name}_all")).float::<4>(&device);
        let [layers, batch, rows, width] = all.dims();
        let all = all.reshape([layers * batch, rows, width]);
        let kept = tokens::gather(
            all.clone().slice_dim(1, front..rows),
            index.clone().repeat_dim(0, layers),
        );
        let kept: Tensor<3> = match front {
            0 => kept,
            _ => Tensor::cat(vec![all.slice_dim(1, 0..front), kept], 1),
        };
        report.meet(&format!("pretrain.{name}_visible"), &Array::of(kept));
    }
    report.finish()
}
