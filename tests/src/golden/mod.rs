//! Reference data: tiny models with inputs, outputs, losses and gradients of the published code.
//!
//! A fixture is a folder; [`check`] picks the program for it by name. Every size is read from the
//! folder, so other seeds and sizes pass without a change here.

pub mod alignment;
pub mod attention_mask;
pub mod autoencoder;
pub mod beats;
pub mod bert;
pub mod diffusion;
pub mod fixture;
pub mod image_text;
pub mod image_towers;
pub mod internvideo2;
pub mod internvideo_next;
pub mod language;
pub mod modern_bert;
pub mod multiblock;
pub mod network;
pub mod optimizer;
pub mod preprocess;
pub mod qformer;
pub mod report;
pub mod stage2;
pub mod stage2_vision;
pub mod teachers;
pub mod tokenizer;
pub mod videomae;
pub mod vjepa2;

use std::path::Path;

use report::Report;

/// Fixtures that must be handled, sorted.
pub const KNOWN: &[&str] = &[
    "adamw_cosine",
    "beats",
    "bert",
    "bert_cross",
    "bert_relu",
    "blip2_qformer",
    "blip_text",
    "clip",
    "diffusion_cosine",
    "internvideo2_ap",
    "internvideo2_attention_mask",
    "internvideo2_cls",
    "internvideo2_mae_teacher",
    "internvideo2_pretrain",
    "internvideo2_pretrain_separable",
    "internvideo2_stage2",
    "internvideo2_stage2_vision",
    "internvideo_next_stage1",
    "internvideo_next_stage2",
    "internvit",
    "internvl_clip_teacher",
    "llama",
    "llama3_rope",
    "llama_lora",
    "mar_diffloss",
    "mistral",
    "modernbert",
    "modernbert_biases",
    "multiblock_masks",
    "preprocess",
    "qwen2",
    "siglip",
    "siglip2",
    "siglip_semantic_mask",
    "tokenizer_llama_bpe",
    "tokenizer_wordpiece",
    "videomae_model",
    "videomae_model_without_biases",
    "videomae_pretrain",
    "videomae_pretrain_without_biases",
    "videomaev2_finetune",
    "videomaev2_pretrain",
    "vjepa2",
    "vjepa2_loss",
    "vjepa2_without_biases",
];

/// Checks one fixture folder; none when no program knows its name.
pub fn check(folder: &Path) -> Option<Report> {
    let name = folder.file_name()?.to_str()?;
    Some(match name {
        "adamw_cosine" => optimizer::check(folder),
        "beats" => beats::check(folder),
        "bert" | "bert_relu" => bert::check(folder),
        "bert_cross" => bert::check_cross(folder),
        "blip2_qformer" => qformer::check(folder),
        "blip_text" => bert::check_blip(folder),
        "clip" => image_text::check_clip(folder),
        "diffusion_cosine" => diffusion::check_cosine(folder),
        "internvideo2_ap" | "internvideo2_cls" => internvideo2::check_classifier(folder),
        "internvideo2_attention_mask" => attention_mask::check(folder),
        "internvideo2_mae_teacher" => teachers::check_videomae(folder),
        "internvideo2_pretrain" | "internvideo2_pretrain_separable" => alignment::check(folder),
        "internvideo2_stage2" => stage2::check(folder),
        "internvideo2_stage2_vision" => stage2_vision::check(folder),
        "internvideo_next_stage1" => internvideo_next::check_stage1(folder),
        "internvideo_next_stage2" => internvideo_next::check_stage2(folder),
        "internvit" => image_towers::check_internvit(folder),
        "internvl_clip_teacher" => teachers::check_internvl(folder),
        "llama" | "llama3_rope" | "mistral" | "qwen2" => language::check(folder),
        "llama_lora" => language::check_lora(folder),
        "mar_diffloss" => diffusion::check_mar(folder),
        "modernbert" | "modernbert_biases" => modern_bert::check(folder),
        "multiblock_masks" => multiblock::check(folder),
        "preprocess" => Report::of_problems(folder, preprocess::check(folder).err()),
        "siglip" => image_text::check_siglip(folder),
        "siglip2" => image_text::check_siglip2(folder),
        "siglip_semantic_mask" => image_towers::check_semantic(folder),
        "tokenizer_llama_bpe" | "tokenizer_wordpiece" => tokenizer::check(folder),
        "videomae_model" | "videomae_model_without_biases" => videomae::check_classifier(folder),
        "videomae_pretrain" | "videomae_pretrain_without_biases" => {
            videomae::check_autoencoder(folder)
        }
        "videomaev2_finetune" => teachers::check_finetune(folder),
        "videomaev2_pretrain" => autoencoder::check(folder),
        "vjepa2" | "vjepa2_without_biases" => vjepa2::check(folder),
        "vjepa2_loss" => vjepa2::check_loss(folder),
        _ => return None,
    })
}
