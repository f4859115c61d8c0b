//! `bert`, `bert_cross` and `blip_text`: encoders and decoders of text.

use std::path::Path;

use burn::module::Module as _;
use burn::tensor::{Gradients, Int, Tensor};
use modules::kind::Kind;
use modules::layers::bert::network::{Bert, memory, seen};
use modules::layers::bert::parts::Mode;
use modules::layers::block::{Block, Context};
use modules::losses::{cross_entropy, masked_token, next_token};
use modules::tensors::Tensors;
use modules::text::bert::Config;
use schemas::dims::Dims;
use serde_json::json;

use super::fixture::{Array, Arrays, Fixture};
use super::network::{Network, autodiff, call, check_coverage, check_gradients, plain, port};
use super::report::Report;

/// A network of the published configuration with the weights of the fixture.
fn load(fixture: &Fixture) -> Network<Config> {
    let published = Config::published(&fixture.config).expect("the configuration is known");
    Network::load(fixture, "model.safetensors", published.options, &Dims::new())
}

/// An int input.
pub fn ints<const R: usize>(inputs: &Arrays, name: &str) -> Tensor<R, Int> {
    inputs[name].int(&autodiff().inner())
}

/// Attention maps, cross-attention maps and residual stream of some blocks; returns the stream after
/// the last one.
pub fn check_blocks(
    report: &mut Report,
    prefix: &str,
    blocks: &[Block],
    mut x: Tensor<3>,
    context: &Context,
) -> Tensor<3> {
    for (number, block) in blocks.iter().enumerate() {
        let mut meet = |name: &str, got: Array| {
            let name = format!("{prefix}{name}.{number}");
            if report.expects(&name) {
                report.meet(&name, &got);
            }
        };
        meet("attn", Array::of(block.map(x.clone(), context)));
        if let Some(map) = block.cross_map(x.clone(), context) {
            meet("cross_attn", Array::of(map));
        }
        x = block.forward(x, context);
        meet("hidden", Array::of(x.clone()));
    }
    x
}

/// Loss of word scores through a kind.
fn told<K: Kind>(kind: &K, logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
    let mut given = plain(kind, Tensors::of("logits", logits).with("labels", labels));
    port(&mut given, "loss")
}

fn gradient(report: &mut Report, name: &str, leaf: &Tensor<3>, all: &Gradients) {
    let found = leaf.grad(all).expect("the input has a gradient");
    report.meet(name, &Array::of(found));
}

/// Checks `bert`: both heads, and the gradient of the word embeddings before they are added up.
pub fn check(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let network = load(&fixture);
    check_coverage(&mut report, &fixture, "model.safetensors", &[&network.taken]);
    let (ids, types) = (ints::<2>(&inputs, "input_ids"), ints::<2>(&inputs, "token_type_ids"));
    let mask = ints::<2>(&inputs, "attention_mask");

    let given = Tensors::of("ids", ids.clone()).with("types", types.clone());
    let mut outputs = network.forward(given.with("mask", mask.clone()));
    let (logits, nsp): (Tensor<3>, Tensor<2>) =
        (port(&mut outputs, "logits"), port(&mut outputs, "nsp"));
    report.meet("logits", &Array::of(logits.clone()));
    report.meet("nsp_logits", &Array::of(nsp.clone()));
    report.meet("pooled", &Array::of(port::<2>(&mut outputs, "pooled")));
    let losses = |logits: Tensor<3>, nsp: Tensor<2>| {
        let mlm = told(&masked_token::Config::default(), logits, ints(&inputs, "labels"));
        let label = ints::<1>(&inputs, "next_sentence_label");
        let given = Tensors::of("logits", nsp).with("label", label);
        let nsp: Tensor<1> = port(&mut plain(&cross_entropy::Config::default(), given), "loss");
        (mlm.clone(), mlm + nsp)
    };
    let (mlm, loss) = losses(logits, nsp);
    report.meet("mlm_loss", &Array::of(mlm));
    report.meet("loss", &Array::of(loss.clone()));
    check_gradients(&mut report, &fixture, "", &network.gradients(&mut loss.backward()));

    let module = &network.module;
    let words = module.words(ids).expect("the ids are words");
    let leaf = words.clone().inner().zeros_like().autodiff().require_grad();
    let x = module.embed(words + leaf.clone(), Some(types), 0, None).expect("the text is short");
    let tokens = x.dims()[1];
    let context =
        Context { mask: seen(false, Some(&mask), [tokens, tokens]), ..Context::default() };
    let valid = module.valid();
    report.meet("embeddings", &Array::of(x.clone()));
    check_blocks(&mut report, "", &valid.blocks, x.clone().inner(), &context);
    let x = module.run(x, network.kind.range(), &context, &call());
    let head = module.mlm.as_ref().expect("there is a head of words");
    let logits = head.forward(x.clone(), module.table().expect("there are embeddings"));
    let pairs = module.nsp.as_ref().expect("there is a head for pairs");
    let (_, loss) = losses(logits, pairs.forward(module.pool(x)));
    gradient(&mut report, "grad_input.inputs_embeds", &leaf, &loss.backward());
    report.finish()
}

/// A pass of one weight set in some mode, compared from the embeddings on; returns its outputs.
struct Pass<'a> {
    prefix: &'a str,
    mode: Mode,
    asks: bool,
    /// Whether hidden tokens of the memory are hidden.
    hides: bool,
}

impl Pass<'_> {
    fn run(
        &self,
        report: &mut Report,
        network: &Network<Config>,
        inputs: &Arrays,
        encoder: &Tensor<3>,
    ) -> Tensors {
        let (ids, mask) = (ints::<2>(inputs, "input_ids"), ints::<2>(inputs, "attention_mask"));
        let there = self.hides.then(|| ints::<2>(inputs, "encoder_attention_mask"));
        let mut given = Tensors::of("ids", ids.clone()).with("mask", mask.clone());
        if self.asks {
            given = given.with("memory", encoder.clone());
        }
        if let Some(there) = &there {
            given = given.with("memory_mask", there.clone());
        }
        let kind = Config { mode: self.mode, ..network.kind.clone() };
        let outputs = kind.forward(&network.module, given, &call());

        let module: Bert = network.module.valid();
        let x = module.words(ids).and_then(|words| module.embed(words, None, 0, None));
        let x = x.unwrap_or_else(|error| panic!("{error}"));
        let tokens = x.dims()[1];
        let encoder = encoder.clone().inner();
        let context = Context {
            mask: seen(self.mode == Mode::Causal, Some(&mask), [tokens, tokens]),
            memory: self.asks.then(|| memory(encoder, there.as_ref(), tokens)),
            ..Context::default()
        };
        report.meet(&format!("{}embeddings", self.prefix), &Array::of(x.clone()));
        check_blocks(report, self.prefix, &module.blocks, x, &context);
        outputs.unwrap_or_else(|error| panic!("{error}"))
    }
}

fn next(smoothing: f64) -> next_token::Config {
    serde_json::from_value(json!({ "smoothing": smoothing })).expect("the options are right")
}

/// Checks `bert_cross`: a decoder with cross-attention.
pub fn check_cross(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let network = load(&fixture);
    check_coverage(&mut report, &fixture, "model.safetensors", &[&network.taken]);
    let encoder = inputs["encoder_hidden_states"].float::<3>(&autodiff()).require_grad();
    let pass = Pass { prefix: "", mode: Mode::Causal, asks: true, hides: true };
    report.same("mode", &network.kind.mode, &Mode::Causal);
    let mut outputs = pass.run(&mut report, &network, &inputs, &encoder);
    let logits: Tensor<3> = port(&mut outputs, "logits");
    report.meet("logits", &Array::of(logits.clone()));
    let loss = told(&next(0.0), logits, ints(&inputs, "labels"));
    report.meet("loss", &Array::of(loss.clone()));
    let mut all = loss.backward();
    gradient(&mut report, "grad_input.encoder_hidden_states", &encoder, &all);
    check_gradients(&mut report, &fixture, "", &network.gradients(&mut all));
    report.finish()
}

/// Checks `blip_text`: one weight set as encoder with and without an image, and as decoder.
pub fn check_blip(folder: &Path) -> Report {
    let fixture = Fixture::open(folder);
    let inputs = fixture.arrays("inputs.safetensors");
    let mut report = Report::new(&fixture, fixture.arrays("expected.safetensors"));
    let network = load(&fixture);
    check_coverage(&mut report, &fixture, "model.safetensors", &[&network.taken]);
    let encoder = inputs["encoder_hidden_states"].float::<3>(&autodiff()).require_grad();
    let mut run = |prefix: &str, mode: Mode, asks: bool| {
        // The reference gives every token of the image a share, whatever the mask says.
        Pass { prefix, mode, asks, hides: false }.run(&mut report, &network, &inputs, &encoder)
    };
    run("text.", Mode::Whole, false);
    let (mut read, mut wrote) = (run("enc.", Mode::Whole, true), run("dec.", Mode::Causal, true));
    let (masked, caption): (Tensor<3>, Tensor<3>) =
        (port(&mut read, "logits"), port(&mut wrote, "logits"));
    report.meet("enc.mlm_logits", &Array::of(masked.clone()));
    report.meet("dec.logits", &Array::of(caption.clone()));
    let masked = told(&masked_token::Config::default(), masked, ints(&inputs, "mlm_labels"));
    report.meet("enc.mlm_loss", &Array::of(masked.clone()));
    let smoothing = fixture.number("label_smoothing");
    let caption = told(&next(smoothing), caption, ints(&inputs, "lm_labels"));
    report.meet("dec.loss", &Array::of(caption.clone()));
    let loss = masked + caption;
    report.meet("loss", &Array::of(loss.clone()));
    let mut all = loss.backward();
    gradient(&mut report, "grad_input.encoder_hidden_states", &encoder, &all);
    check_gradients(&mut report, &fixture, "", &network.gradients(&mut all));
    report.finish()
}
