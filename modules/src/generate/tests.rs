use burn::tensor::{Device, Int, TensorData};

use super::decoder::Input;
use super::*;

/// Scores that depend on the last two words alone.
struct Pairs {
    words: usize,
    context: usize,
}

/// For each row, its words.
type Read = Vec<Vec<i64>>;

impl Pairs {
    fn scores(&self, read: &Read) -> Tensor<2> {
        let one = |words: &Vec<i64>, next: usize| {
            let [a, b] = [1, 2].map(|back| words.iter().rev().nth(back - 1).copied().unwrap_or(0));
            let x = (7 * a + 3 * b + 11 * next as i64) as f32;
            2.0 * (0.7 * x).sin() + (0.3 * x).cos()
        };
        let values =
            read.iter().flat_map(|words| (0..self.words).map(move |next| one(words, next)));
        let data = TensorData::new(values.collect::<Vec<_>>(), [read.len(), self.words]);
        Tensor::from_data(data, &Device::flex())
    }
}

impl Decoder for Pairs {
    type Cache = Read;

    fn context(&self) -> usize {
        self.context
    }

    fn prefill(&self, prompt: &Prompt) -> Result<(Read, Tensor<2>), NodeError> {
        let Input::Ids(ids) = &prompt.input else { panic!("only words") };
        let values: Vec<i64> = ids.to_data().iter::<i64>().collect();
        let read: Read = values.chunks(ids.dims()[1]).map(<[i64]>::to_vec).collect();
        let scores = self.scores(&read);
        Ok((read, scores))
    }

    fn step(&self, ids: &[i64], read: &mut Read) -> Result<Tensor<2>, NodeError> {
        read.iter_mut().zip(ids).for_each(|(words, id)| words.push(*id));
        Ok(self.scores(read))
    }

    fn select(&self, read: &mut Read, rows: &[usize]) {
        *read = rows.iter().map(|row| read[*row].clone()).collect();
    }
}

const DECODER: Pairs = Pairs { words: 5, context: 40 };

fn prompt(texts: &[Vec<i64>]) -> Prompt {
    Prompt::of_words(texts, &Device::flex())
}

fn run(texts: &[Vec<i64>], settings: &Settings) -> Vec<Generated> {
    let letters = |words: &[i64]| words.iter().map(|w| char::from(b'a' + *w as u8)).collect();
    generate(&DECODER, &prompt(texts), settings, Some(&letters), &Key::new(5, "write")).unwrap()
}

fn settings(search: Search, max_tokens: usize) -> Settings {
    Settings { search, max_tokens, ..Settings::default() }
}

/// Log probabilities of all texts of a length after a prompt; word 4 ends them.
fn all_texts(begin: &[i64], length: usize) -> Vec<(Vec<i64>, f64, usize)> {
    let mut open = vec![(Vec::new(), 0.0)];
    let mut texts = Vec::new();
    for made in 1..=length {
        let mut next = Vec::new();
        for (words, sum) in open {
            let read = vec![[begin, words.as_slice()].concat()];
            let scores = to_rows(DECODER.scores(&read)).unwrap().remove(0);
            for word in 0..5 {
                let sum: f64 = sum + choice::log_probability(&scores, word);
                if word == 4 {
                    texts.push((words.clone(), sum, made));
                } else {
                    next.push(([words.as_slice(), &[word as i64]].concat(), sum));
                }
            }
        }
        open = next;
    }
    texts.extend(open.into_iter().map(|(words, sum)| (words, sum, length)));
    texts
}

#[test]
fn enough_beams_find_the_best_text_of_all() {
    for begin in [vec![0, 1], vec![3, 2], vec![2, 2]] {
        for length_penalty in [0.0, 1.0, 2.0] {
            let search = Search::Beams { beams: 400, length_penalty };
            let settings = Settings { stop_ids: vec![4], ..settings(search, 4) };
            let found = run(std::slice::from_ref(&begin), &settings).remove(0);
            let worth =
                |text: &(Vec<i64>, f64, usize)| text.1 / (text.2 as f64).powf(length_penalty);
            let texts = all_texts(&begin, 4);
            let best = texts.iter().max_by(|a, b| worth(a).total_cmp(&worth(b))).unwrap();
            assert_eq!(found.tokens, best.0, "{begin:?} {length_penalty}");
            assert!((found.log_probability - best.1).abs() < 1e-9);
        }
    }
}

#[test]
fn one_beam_is_greedy_and_more_beams_are_not_less_likely() {
    let texts = [vec![0, 1], vec![3, 2], vec![1, 4]];
    let greedy = run(&texts, &settings(Search::Greedy, 9));
    let beams = |beams| run(&texts, &settings(Search::Beams { beams, length_penalty: 1.0 }, 9));
    for ((greedy, one), four) in greedy.iter().zip(beams(1)).zip(beams(4)) {
        assert_eq!((&greedy.tokens, &greedy.text), (&one.tokens, &one.text));
        assert!(four.log_probability >= one.log_probability - 1e-9);
    }
}

#[test]
fn a_sample_is_drawn_alike_in_any_company_and_anew_with_another_key() {
    let search = Search::Sample { temperature: 1.5, top_k: 4, top_p: 0.95 };
    let settings = Settings { stop_ids: vec![0], ..settings(search, 12) };
    let both = run(&[vec![0, 1], vec![3, 2]], &settings);
    assert_eq!(both[0], run(&[vec![0, 1]], &settings)[0]);
    assert_eq!(both, run(&[vec![0, 1], vec![3, 2]], &settings));
    let key = Key::new(6, "write");
    let prompt = prompt(&[vec![0, 1], vec![3, 2]]);
    let other = generate(&DECODER, &prompt, &settings, None, &key).unwrap();
    assert!((0..2).any(|i| both[i].tokens != other[i].tokens));
}

#[test]
fn texts_end_at_words_strings_numbers_and_the_context() {
    let text = |settings: &Settings| run(&[vec![0, 1]], settings).remove(0);
    let whole = text(&settings(Search::Greedy, 8));
    assert_eq!((whole.end, whole.tokens.len()), (End::MaxTokens, 8));
    let third = whole.tokens[2];
    let stop = Settings { stop_ids: vec![third], ..settings(Search::Greedy, 8) };
    let at = whole.tokens.iter().position(|word| *word == third).unwrap();
    assert_eq!((text(&stop).end, text(&stop).tokens.len()), (End::StopId(third), at));
    let letters = whole.text.unwrap();
    let string = letters[3..5].to_owned();
    let stop = Settings { stop_strings: vec![string.clone()], ..settings(Search::Greedy, 8) };
    let found = text(&stop);
    assert_eq!(found.text.as_deref(), Some(&letters[..letters.find(&string).unwrap()]));
    assert_eq!(found.end, End::StopString(string));
    // 38 of 40 places are left, and the last word needs none.
    let full = text(&settings(Search::Greedy, 100));
    assert_eq!((full.end, full.tokens.len()), (End::Context, 39));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let refused = |prompt: &Prompt, settings: &Settings| {
        generate(&DECODER, prompt, settings, None, &Key::new(1, "x")).unwrap_err().to_string()
    };
    let long = refused(&prompt(&[vec![0; 41]]), &Settings::default());
    assert!(long.contains("41 tokens, more than the context of 40"), "{long}");
    let short = prompt(&[vec![0]]);
    let strings = Settings { stop_strings: vec!["x".to_owned()], ..Settings::default() };
    assert!(refused(&short, &strings).contains("give a decoder"));
    let cold = Search::Sample { temperature: 0.0, top_k: 0, top_p: 1.0 };
    assert!(refused(&short, &settings(cold, 8)).contains("`temperature` is 0"));
}

#[test]
fn texts_of_different_lengths_are_padded_on_the_left() {
    let Prompt { input: Input::Ids(ids), mask: Some(mask) } = prompt(&[vec![7], vec![8, 9]]) else {
        panic!("a mask")
    };
    let values = |t: Tensor<2, Int>| t.into_data().iter::<i64>().collect::<Vec<_>>();
    assert_eq!((values(ids), values(mask)), (vec![0, 7, 8, 9], vec![0, 1, 1, 1]));
}
