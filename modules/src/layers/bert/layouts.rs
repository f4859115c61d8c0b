//! How published files name the parameters of BERT and its relatives.

use crate::layout::Layout;

/// Names blocks as BERT does, where the first block is number `first` of the file.
/// `attention` is the word before the projections: `self` in most files.
fn bert_blocks(layout: Layout, depth: usize, first: usize, attention: &str) -> Layout {
    let (own, cross) =
        (format!(".attention.{attention}."), format!(".crossattention.{attention}."));
    let mut layout = layout.rules(&[
        (".cross.attn.proj.", ".crossattention.output.dense."),
        (".cross.norm.", ".crossattention.output.LayerNorm."),
        (".attn.proj.", ".attention.output.dense."),
        (".second.mlp.fc1.", ".intermediate_query.dense."),
        (".second.mlp.fc2.", ".output_query.dense."),
        (".second.norm.", ".output_query.LayerNorm."),
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
        (".norm1.", ".attention.output.LayerNorm."),
        (".norm2.", ".output.LayerNorm."),
    ]);
    for (ours, theirs) in [("q", "query"), ("k", "key"), ("v", "value")] {
        layout = layout
            .rule(&format!(".cross.attn.{ours}."), &format!("{cross}{theirs}."))
            .rule(&format!(".attn.{ours}."), &format!("{own}{theirs}."));
    }
    for number in 0..depth {
        let theirs = format!("encoder.layer.{}.", number + first);
        layout = layout.rule(&format!("^blocks.{number}."), &theirs);
    }
    layout
}

/// Names the tables as BERT does.
fn bert_tables(layout: Layout) -> Layout {
    layout.rules(&[
        ("^embeddings.words", "embeddings.word_embeddings.weight"),
        ("^embeddings.positions", "embeddings.position_embeddings.weight"),
        ("^embeddings.types", "embeddings.token_type_embeddings.weight"),
    ])
}

/// Names the head of words as BERT does, which may repeat matrix and bias.
fn bert_words(layout: Layout) -> Layout {
    tied(layout, "").rules(&[
        ("^mlm.dense.", "cls.predictions.transform.dense."),
        ("^mlm.norm.", "cls.predictions.transform.LayerNorm."),
        ("^mlm.bias", "cls.predictions.bias"),
    ])
}

/// What a head of words after the given text may repeat.
fn tied(layout: Layout, before: &str) -> Layout {
    let key = |end: &str| format!("{before}cls.predictions.decoder.{end}");
    layout.again(&key("weight"), "embeddings.words").again(&key("bias"), "mlm.bias")
}

/// BERT, of which blocks from `first` on are held: with heads beside it, as in oldest files, and
/// alone.
pub(crate) fn of_bert(depth: usize, first: usize) -> Vec<Layout> {
    let named = |name: &'static str, body: &str| {
        let layout = bert_tables(bert_blocks(Layout::new(name), depth, first, "self"));
        bert_words(layout).rules(&[
            ("^norm.", &format!("{body}embeddings.LayerNorm.")),
            ("^embeddings.", &format!("{body}embeddings.")),
            ("^encoder.", &format!("{body}encoder.")),
            ("^pooler.", &format!("{body}pooler.dense.")),
            ("^nsp.", "cls.seq_relationship."),
        ])
    };
    let oldest = named("hf_gamma", "bert.")
        .rules(&[("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")]);
    vec![named("hf", "bert."), oldest, named("hf_body", "")]
}

/// A Q-Former: of transformers, of LAVIS, of VideoChat2. Without text its one MLP is that of the
/// queries.
pub(crate) fn of_qformer(depth: usize, text: bool) -> Vec<Layout> {
    let queries_alone = [
        (".mlp.fc1.", ".second.mlp.fc1."),
        (".mlp.fc2.", ".second.mlp.fc2."),
        (".norm2.", ".second.norm."),
    ];
    let named = |name: &'static str, attention: &str| {
        let layout = Layout::new(name).rules(if text { &[] } else { &queries_alone });
        bert_words(bert_tables(bert_blocks(layout, depth, 0, attention)))
    };
    let whole = |name: &'static str, all: &str| {
        tied(named(name, "self"), &format!("{all}.")).rules(&[
            ("^norm.", &format!("{all}.bert.embeddings.LayerNorm.")),
            ("^embeddings.", &format!("{all}.bert.embeddings.")),
            ("^encoder.", &format!("{all}.bert.encoder.")),
            ("^cls.", &format!("{all}.cls.")),
        ])
    };
    let hf = named("hf", "attention")
        .rules(&[("^norm.", "qformer.layernorm."), ("^encoder.", "qformer.encoder.")]);
    vec![hf, whole("lavis", "Qformer"), whole("videochat2", "qformer")]
}
