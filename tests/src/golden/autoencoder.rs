//! `videomaev2_pretrain`: encoder, decoder and pixel loss under dual masking.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use modules::losses::masked_pixel;
use modules::masks::running_cell;
use modules::models::{videomae_decoder, videomae_v2};
use modules::tensors::Tensors;
use schemas::dims::Dims;
use serde_json::{Value, json};

use super::fixture::{Array, Arrays, Fixture};
use super::network::{Network, autodiff, check_coverage, check_gradients, dims, port};
use super::report::Report;
use super::teachers::check_blocks;

const WEIGHTS: &str = "model.safetensors";

type Encoder = Network<videomae_v2::Config>;
type Decoder = Network<videomae_decoder::Config>;

/// Clip, lattice and masks of the fixture.
struct Setting {
    fixture: Fixture,
    video: Array,
    lattice: [usize; 3],
    visible: Array,
    hidden: Array,
    /// What dual masking decodes.
    decode: Array,
}

impl Setting {
    fn new(fixture: Fixture, inputs: &Arrays) -> Self {
        let video = inputs["video"].clone();
        let [_, _, t, h, w] = video.shape[..] else { panic!("a video has five dims") };
        let (tubelet, patch) = (fixture.count("tubelet_size"), fixture.count("patch_size"));
        let lattice = [t / tubelet, h / patch, w / patch];
        let mask = &inputs["mask"];
        let (visible, hidden) = (mask.places(0.0, 0), mask.places(1.0, 0));
        let decode = inputs["decode_mask"].places(0.0, 0);
        Self { fixture, video, lattice, visible, hidden, decode }
    }

    /// Dims of all three nodes when they decode so many patches.
    fn dims(&self, decoded: usize) -> Dims {
        let [b, _, t, h, w] = self.video.shape[..] else { panic!("a video has five dims") };
        let (v, width) = (self.visible.shape[1], self.fixture.count("encoder_embed_dim"));
        let mut all = dims([("B", b), ("T", t), ("H", h), ("W", w), ("V", v), ("D", width)]);
        let [t, h, w] = self.lattice;
        let pixels = self.fixture.count("decoder_num_classes");
        all.extend(dims([("t", t), ("h", h), ("w", w), ("M", decoded), ("C", pixels)]));
        all
    }

    fn size(&self, part: &str) -> Value {
        let count = |name: &str| self.fixture.count(&format!("{part}_{name}"));
        let width = count("embed_dim");
        json!({
            "patch": self.fixture.count("patch_size"),
            "tubelet": self.fixture.count("tubelet_size"),
            "width": width,
            "depth": count("depth"),
            "heads": count("num_heads"),
            "hidden": (width as f64 * self.fixture.number("mlp_ratio")) as usize,
        })
    }

    fn encoder(&self) -> Encoder {
        let options = json!({
            "size": self.size("encoder"),
            "layer_scale": self.fixture.number("init_values"),
            "cosine_attention": self.fixture.flag("cos_attn"),
        });
        Network::load(&self.fixture, WEIGHTS, options, &self.dims(self.decode.shape[1]))
    }

    fn decoder(&self) -> Decoder {
        let options = json!({ "size": self.size("decoder") });
        Network::load(&self.fixture, WEIGHTS, options, &self.dims(self.decode.shape[1]))
    }

    fn visible(&self) -> Tensor<2, Int> {
        self.visible.int(&device())
    }

    /// Painted patches, `[B, M, C]`.
    fn paint(&self, decoder: &Decoder, tokens: Tensor<3>, decode: &Array) -> Tensor<3> {
        let inputs = Tensors::of("tokens", tokens)
            .with("visible", self.visible())
            .with("decode", decode.int::<2>(&device()));
        port(&mut decoder.forward(inputs), "pixels")
    }

    /// The loss node, and the loss of painted patches.
    fn loss(&self, normalise: bool, painted: Tensor<3>, decode: &Array) -> Tensor<1> {
        let loss = self.pixel(normalise, decode);
        let inputs = Tensors::of("predicted", painted)
            .with("video", self.video.float::<5>(&device()))
            .with("decode", decode.int::<2>(&device()))
            .with("visible", self.visible());
        port(&mut loss.forward(inputs), "loss")
    }

    fn pixel(&self, normalise: bool, decode: &Array) -> Network<masked_pixel::Config> {
        let (options, sizes) = (json!({ "normalise": normalise }), self.dims(decode.shape[1]));
        Network::load(&self.fixture, WEIGHTS, options, &sizes)
    }
}

fn device() -> Device {
    autodiff().inner()
}

/// Checks the fixture.
pub fn check(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let at = Setting::new(fixture, &inputs);
    let (encoder, decoder) = (at.encoder(), at.decoder());
    check_coverage(&mut report, &at.fixture, WEIGHTS, &[&encoder.taken, &decoder.taken]);

    let video = at.video.float::<5>(&autodiff()).require_grad();
    let inputs = Tensors::of("video", video.clone()).with("visible", at.visible());
    let tokens: Tensor<3> = port(&mut encoder.forward(inputs), "tokens");
    report.meet("encoder_out", &Array::of(tokens.clone()));
    let painted = at.paint(&decoder, tokens.clone(), &at.decode);
    report.meet("out", &Array::of(painted.clone()));
    let loss = at.loss(true, painted.clone(), &at.decode);
    report.meet("loss", &Array::of(loss.clone()));
    let mut all = loss.backward();
    let gradient = video.grad(&all).expect("the video has a gradient");
    report.meet("grad_input.video", &Array::of(gradient));
    let mut gradients = encoder.gradients(&mut all);
    gradients.extend(decoder.gradients(&mut all));
    check_gradients(&mut report, &at.fixture, "", &gradients);

    report.meet("raw.loss", &Array::of(at.loss(false, painted, &at.decode)));
    let painted = at.paint(&decoder, tokens.clone(), &at.hidden);
    report.meet("nodec.out", &Array::of(painted.clone()));
    report.meet("nodec.loss", &Array::of(at.loss(true, painted, &at.hidden)));
    check_inside(&mut report, &at, (&encoder, &decoder), tokens.inner());
    check_cells(&mut report, &at);
    report.finish()
}

/// Residual streams, attention maps, position tables and targets.
fn check_inside(report: &mut Report, at: &Setting, nets: (&Encoder, &Decoder), tokens: Tensor<3>) {
    let (encoder, decoder) = (nets.0.module.valid(), nets.1.module.valid());
    let x = encoder.embed(at.video.float(&device()), Some(at.visible()));
    check_blocks(report, &encoder.blocks, x, "", Some("attn"));
    let x = decoder.embed(tokens, at.visible(), at.decode.int(&device()));
    check_blocks(report, &decoder.blocks, x, "decoder_", Some("attn"));
    for (name, table) in [("encoder", &encoder.table), ("decoder", &decoder.table)] {
        let values: Vec<f64> = table.values().iter().map(|v| f64::from(*v)).collect();
        report.meet(&format!("pos_table.{name}"), &Array { shape: vec![values.len()], values });
    }
    let pixel = at.pixel(true, &at.decode).module;
    let targets = pixel.targets(at.video.float(&device()), at.decode.int(&device()));
    report.meet("target_normalised", &Array::of(targets));
}

/// Every map that the running cell can give, in the order of its phases.
fn check_cells(report: &mut Report, at: &Setting) {
    let config = running_cell::Config {
        ratio: at.fixture.number("decoder_mask_ratio"),
        patch: at.fixture.count("patch_size"),
        tubelet: at.fixture.count("tubelet_size"),
    };
    let maps = report.take("running_cell.all_maps");
    let phases = maps.shape[0];
    let maps = Array { shape: vec![phases, maps.values.len() / phases], values: maps.values };
    let found = (0..phases).flat_map(|phase| config.choose(at.lattice, phase));
    let found: Vec<f64> = found.map(|index| index as f64).collect();
    report.same("running_cell.all_maps", &found, &maps.places(0.0, 0).values);
}
