//! Checkpoint rules against what PyTorch makes of the same arrays (`tools/make_rules.py`).

use std::path::Path;

use modules::archive::Archive;
use modules::archive::rules::{ArrayF32, Filter, Restem, Rule};

fn numbers() -> Archive {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    Archive::open(&folder.join("rules.safetensors")).unwrap()
}

fn array(archive: &Archive, key: &str) -> ArrayF32 {
    let stored = archive.get(key).unwrap();
    ArrayF32::new(stored.shape.to_vec(), stored.to_f32()).unwrap()
}

fn plane(to: [usize; 2], filter: Filter, antialias: bool) -> Rule {
    Rule::ResizePlane { from: [4, 5], to, filter, antialias, leading: 2 }
}

fn restem(to: [usize; 2], filter: Filter, antialias: bool) -> Rule {
    Rule::ResizeKernel { to, how: Restem::PseudoInverse { filter, antialias } }
}

#[test]
fn every_rule_gives_the_numbers_of_pytorch() {
    let archive = numbers();
    let bicubic = Rule::ResizeKernel { to: [6, 7], how: Restem::Bicubic };
    let alpha = Some(16.0);
    let lora = |rank_stabilised| Rule::MergeLora { alpha, rank_stabilised, from: None };
    let clip = Rule::ResizeClip { from: [4, 2, 3], to: [6, 4, 5], leading: 1 };
    let three = ["lora.w", "lora.a", "lora.b"];
    let rules: [(Rule, &[&str], &str); 13] = [
        (plane([7, 3], Filter::Bicubic, false), &["plane.in"], "plane.bicubic"),
        (plane([7, 3], Filter::Bilinear, false), &["plane.in"], "plane.bilinear"),
        (plane([3, 2], Filter::Bilinear, true), &["plane.in"], "plane.bilinear_antialias"),
        (plane([3, 2], Filter::Bicubic, true), &["plane.in"], "plane.bicubic_antialias"),
        (Rule::ResizeTime { from: 4, to: 8, leading: 1 }, &["time.in"], "time.longer"),
        (Rule::ResizeTime { from: 4, to: 3, leading: 1 }, &["time.in"], "time.shorter"),
        (clip, &["time.in"], "clip"),
        (bicubic, &["kernel.in"], "kernel.bicubic"),
        (restem([6, 7], Filter::Bicubic, true), &["kernel.in"], "kernel.larger"),
        (restem([8, 8], Filter::Bilinear, false), &["kernel.in"], "kernel.larger_bilinear"),
        (restem([3, 4], Filter::Bicubic, true), &["kernel.in"], "kernel.smaller"),
        (lora(false), &three, "lora.plain"),
        (lora(true), &three, "lora.stabilised"),
    ];
    for (rule, inputs, output) in rules {
        let inputs: Vec<ArrayF32> = inputs.iter().map(|key| array(&archive, key)).collect();
        let (made, expected) = (rule.apply(&inputs).unwrap(), array(&archive, output));
        assert_eq!(made.shape, expected.shape, "{output}");
        let largest = expected.values.iter().fold(1.0f32, |a, b| a.max(b.abs()));
        for (made, expected) in made.values.iter().zip(&expected.values) {
            // PyTorch weighs in f32 as well, in another order.
            let close = (made - expected).abs() <= 2e-6 * largest;
            assert!(close, "{output}: {made} {expected}");
        }
    }
}
