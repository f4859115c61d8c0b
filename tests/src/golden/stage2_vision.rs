//! `internvideo2_stage2_vision`: clips and pictures, masked or not, and the heads of an unmasked teacher.

use std::path::Path;

use burn::tensor::{Int, Tensor};
use modules::kind::Kind;
use modules::losses::feature_alignment;
use modules::models::internvideo2;
use modules::tensors::Tensors;
use schemas::dims::Dims;

use super::fixture::{Array, Arrays, Fixture};
use super::internvideo2::lattice;
use super::network::{Network, autodiff, check_coverage, check_gradients, dims, port};
use super::report::Report;

const WEIGHTS: &str = "model.safetensors";

type Encoder = Network<internvideo2::Config>;
type Alignment = Network<feature_alignment::Config>;

struct Setting {
    fixture: Fixture,
    inputs: Arrays,
    visible: Array,
}

impl Setting {
    fn encoder(&self, more: &Dims) -> Encoder {
        let mut found = internvideo2::Config::published(&self.fixture.config).expect("known");
        found.options["taps"] = self.fixture.count("depth").into();
        found.options["activation"] = "gelu".into(); // the reference has no fused MLP
        found.options["table_frames"] = self.fixture.count("num_frames").into();
        found.dims.extend(more.clone());
        Network::load(&self.fixture, WEIGHTS, found.options, &found.dims)
    }

    /// Heads on tokens and on the pooled feature.
    fn heads(&self) -> [Alignment; 2] {
        let all = feature_alignment::Config::all_published(&self.fixture.config);
        let load = |found: modules::kind::Published| {
            Network::load(&self.fixture, WEIGHTS, found.options, &found.dims)
        };
        let [tokens, pooled] = all.try_into().expect("two groups of heads");
        [load(tokens), load(pooled)]
    }

    fn visible(&self) -> Tensor<2, Int> {
        self.visible.int(&autodiff().inner())
    }

    /// The teacher's tokens of the whole clip: those that the fixture gives are the visible ones.
    fn teacher(&self) -> Tensor<4> {
        let given = &self.inputs["target_middle"];
        let [k, b, kept, width] = given.shape[..] else { panic!("four dims") };
        let all = self.inputs["mask"].shape[1];
        let mut values = vec![0.0; k * b * all * width];
        for row in 0..k * b {
            let sample = row % b;
            for token in 0..kept {
                let to = match token {
                    0 => 0,
                    token => 1 + self.visible.values[sample * (kept - 1) + token - 1] as usize,
                };
                let from = &given.values[(row * kept + token) * width..][..width];
                values[(row * all + to) * width..][..width].copy_from_slice(from);
            }
        }
        Array { shape: vec![k, b, all, width], values }.float(&autodiff().inner())
    }
}

/// Checks the fixture.
pub fn check(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let visible = inputs["mask"].places(0.0, 1);
    let at = Setting { visible, fixture, inputs };
    let whole = at.encoder(&Dims::new());
    let heads = at.heads();
    let taken = [&whole.taken, &heads[0].taken, &heads[1].taken];
    check_coverage(&mut report, &at.fixture, WEIGHTS, &taken);

    let device = autodiff();
    let video = at.inputs["video"].float::<5>(&device);
    let image = at.inputs["image"].float::<5>(&device);
    check_pass(&mut report, "video.", &whole, &heads, Tensors::of("video", video.clone()), None);
    let picture = at.encoder(&dims([("T", 1)]));
    check_pass(&mut report, "image.", &picture, &heads, Tensors::of("video", image), None);
    // The features before the last block are those of an encoder without it.
    let tokens: Tensor<4> = port(&mut whole.forward(Tensors::of("video", video.clone())), "layers");
    let before = tokens.dims()[0] - 2;
    let before: Tensor<3> = tokens.slice_dim(0, before..before + 1).squeeze_dim(0);
    report.meet("penultimate.x_vis", &Array::of(before));
    check_masked(&mut report, &at, &heads, video);
    report.finish()
}

/// Compares tokens, pooled feature and projections; returns the layers and the pooled feature.
fn check_pass(
    report: &mut Report,
    prefix: &str,
    encoder: &Encoder,
    heads: &[Alignment; 2],
    inputs: Tensors,
    visible: Option<&Tensor<2, Int>>,
) -> (Tensor<4>, Tensor<2>) {
    let rows = 1 + match &inputs.iter().find(|(name, _)| *name == "video") {
        Some((_, video)) => {
            let shape = video.shape();
            let size = encoder.kind.size();
            shape[2] / size.tubelet * (shape[3] / size.patch) * (shape[4] / size.patch)
        }
        None => 0,
    };
    let mut outputs = encoder.forward(inputs);
    let layers: Tensor<4> = port(&mut outputs, "layers");
    let pooled: Tensor<2> = port(&mut outputs, "pooled");
    report.meet(&format!("{prefix}x_vis"), &Array::of(port::<3>(&mut outputs, "tokens")));
    report.meet(&format!("{prefix}x_pool"), &Array::of(pooled.clone()));
    let found = heads[0].module.project(layers.clone(), visible.cloned(), rows);
    report.meet(&format!("{prefix}clip_align"), &Array::of(found));
    let found = heads[1].module.heads[0].forward(pooled.clone());
    report.meet(&format!("{prefix}final_align"), &Array::of(found));
    (layers, pooled)
}

/// The masked pass with its alignment losses and gradients.
fn check_masked(report: &mut Report, at: &Setting, heads: &[Alignment; 2], video: Tensor<5>) {
    let encoder = at.encoder(&dims([("V", at.visible.shape[1])]));
    let video = video.inner().autodiff().require_grad();
    let inputs = Tensors::of("video", video.clone()).with("visible", at.visible());
    let visible = at.visible();
    let (layers, pooled) = check_pass(report, "masked.", &encoder, heads, inputs, Some(&visible));
    for (number, layer) in (0..layers.dims()[0]).map(|n| (n, layers.clone().slice_dim(0, n..n + 1)))
    {
        report.meet(&format!("masked.hidden.{number}"), &Array::of(layer));
    }
    let given = Tensors::of("student", layers).with("teacher", at.teacher());
    let middle: Tensor<1> = port(&mut heads[0].forward(given.with("visible", visible)), "loss");
    let target = at.inputs["target_final"].float::<2>(&autodiff().inner());
    let given = Tensors::of("student", pooled).with("teacher", target);
    let last: Tensor<1> = port(&mut heads[1].forward(given), "loss");
    let loss = middle + last;
    report.meet("loss", &Array::of(loss.clone()));
    let mut all = loss.backward();
    let gradient = video.grad(&all).expect("the video has a gradient");
    report.meet("grad_input.video", &Array::of(gradient));
    let mut gradients = encoder.gradients(&mut all);
    heads.iter().for_each(|head| gradients.extend(head.gradients(&mut all)));
    check_gradients(report, &at.fixture, "", &gradients);
    let (fixture, video) = (&at.fixture, &at.inputs["video"]);
    assert_eq!(lattice(fixture, video).iter().product::<usize>() + 1, at.inputs["mask"].shape[1]);
}
