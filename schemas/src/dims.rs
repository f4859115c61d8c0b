//! Symbolic dims: `B 3 T/2 (H/14)*(W/14)`, matched against and computed from numbers.
//!
//! A dim is a number, a symbol, or an expression of `+ - * /`. Division must be exact: a clip
//! that leaves a remainder is an error, not a rounding. `keep(N,0.8)` is what a mask of ratio 0.8
//! leaves visible of N tokens; `floor(H,14)` is the number of whole patches of 14, where a network
//! drops what is left. One port's dims are separated by blanks, so an expression holds none.

use std::collections::BTreeMap;
use std::fmt;

/// Values of the symbols of one node.
pub type Dims = BTreeMap<String, usize>;

/// One dim of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// A fixed extent.
    Number(usize),
    /// A symbol, bound by the first port that shows it.
    Symbol(String),
    /// Two dims joined by one of `+ - * /`.
    Join(Box<Dim>, char, Box<Dim>),
    /// What a mask of the ratio (as written, in `[0, 1)`) leaves visible of a dim.
    Keep(Box<Dim>, String),
    /// How often a number above 0 fits into a dim.
    Floor(Box<Dim>, usize),
}

/// Visible tokens of `all` under a mask of `ratio`: `all - floor(all ratio)`.
pub fn keep(all: usize, ratio: f64) -> usize {
    all - ((all as f64 * ratio).floor().max(0.0) as usize).min(all)
}

/// Why a dim has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DimError {
    /// The text is not an expression.
    #[error("`{text}` is not a dim")]
    Syntax {
        /// The text.
        text: String,
    },
    /// No port binds the symbol.
    #[error("`{symbol}` has no value")]
    Unbound {
        /// The symbol.
        symbol: String,
    },
    /// A division leaves a remainder.
    #[error("{what} = {value} is not a multiple of {divisor}")]
    Remainder {
        /// The dividend as written.
        what: String,
        /// Its value.
        value: usize,
        /// What should divide it.
        divisor: usize,
    },
    /// The value is negative or too large.
    #[error("`{text}` is out of range")]
    Range {
        /// The expression.
        text: String,
    },
}

impl Dim {
    /// Reads one expression.
    pub fn parse(text: &str) -> Result<Self, DimError> {
        let tokens = tokens(text);
        let mut at = 0;
        let dim = parse_sum(&tokens, &mut at);
        match dim {
            Some(dim) if at == tokens.len() => Ok(dim),
            _ => Err(DimError::Syntax { text: text.to_owned() }),
        }
    }

    /// Reads dims separated by blanks.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, DimError> {
        text.split_whitespace().map(Self::parse).collect()
    }

    /// The value, given the symbols.
    pub fn value(&self, dims: &Dims) -> Result<usize, DimError> {
        match self {
            Self::Number(n) => Ok(*n),
            Self::Symbol(symbol) => {
                dims.get(symbol).copied().ok_or(DimError::Unbound { symbol: symbol.clone() })
            }
            Self::Keep(all, ratio) => {
                let ratio =
                    ratio.parse().map_err(|_| DimError::Range { text: self.to_string() })?;
                Ok(keep(all.value(dims)?, ratio))
            }
            Self::Floor(all, by) => Ok(all.value(dims)? / by),
            Self::Join(left, op, right) => {
                let (a, b) = (left.value(dims)?, right.value(dims)?);
                let range = || DimError::Range { text: self.to_string() };
                match op {
                    '+' => a.checked_add(b).ok_or_else(range),
                    '-' => a.checked_sub(b).ok_or_else(range),
                    '*' => a.checked_mul(b).ok_or_else(range),
                    _ if b == 0 => Err(range()),
                    _ if a % b != 0 => {
                        Err(DimError::Remainder { what: left.to_string(), value: a, divisor: b })
                    }
                    _ => Ok(a / b),
                }
            }
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n) => write!(f, "{n}"),
            Self::Symbol(s) => f.write_str(s),
            Self::Keep(all, ratio) => write!(f, "keep({all},{ratio})"),
            Self::Floor(all, by) => write!(f, "floor({all},{by})"),
            Self::Join(a, op, b) => {
                let side = |d: &Self| match d {
                    Self::Join(_, inner, _) if "+-".contains(*inner) && "*/".contains(*op) => {
                        format!("({d})")
                    }
                    _ => d.to_string(),
                };
                write!(f, "{}{op}{}", side(a), side(b))
            }
        }
    }
}

fn tokens(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut joined = false;
    for c in text.chars() {
        let word = c.is_ascii_alphanumeric() || c == '_';
        match tokens.last_mut() {
            Some(last) if word && joined => last.push(c),
            _ => tokens.push(c.to_string()),
        }
        joined = word;
    }
    tokens
}

fn parse_sum(tokens: &[String], at: &mut usize) -> Option<Dim> {
    let mut left = parse_product(tokens, at)?;
    while let Some(op) = operator(tokens, *at, "+-") {
        *at += 1;
        left = Dim::Join(Box::new(left), op, Box::new(parse_product(tokens, at)?));
    }
    Some(left)
}

fn parse_product(tokens: &[String], at: &mut usize) -> Option<Dim> {
    let mut left = parse_atom(tokens, at)?;
    while let Some(op) = operator(tokens, *at, "*/") {
        *at += 1;
        left = Dim::Join(Box::new(left), op, Box::new(parse_atom(tokens, at)?));
    }
    Some(left)
}

fn operator(tokens: &[String], at: usize, among: &str) -> Option<char> {
    tokens.get(at).and_then(|t| t.chars().next()).filter(|c| among.contains(*c))
}

fn parse_atom(tokens: &[String], at: &mut usize) -> Option<Dim> {
    let token = tokens.get(*at)?;
    *at += 1;
    if token == "(" {
        let inner = parse_sum(tokens, at)?;
        let closed = tokens.get(*at).is_some_and(|t| t == ")");
        *at += 1;
        return closed.then_some(inner);
    }
    let first = token.chars().next()?;
    if first.is_ascii_digit() {
        return token.parse().ok().map(Dim::Number);
    }
    let called = tokens.get(*at).is_some_and(|t| t == "(");
    match token.as_str() {
        "keep" if called => return parse_keep(tokens, at),
        "floor" if called => return parse_floor(tokens, at),
        _ => {}
    }
    (first.is_ascii_alphabetic() || first == '_').then(|| Dim::Symbol(token.clone()))
}

/// `(dim,text)` after the name of a function.
fn parse_pair(tokens: &[String], at: &mut usize) -> Option<(Dim, String)> {
    *at += 1;
    let all = parse_sum(tokens, at)?;
    if tokens.get(*at).is_none_or(|t| t != ",") {
        return None;
    }
    let rest = &tokens[*at + 1..];
    let end = rest.iter().position(|t| t == ")")?;
    *at += end + 2;
    Some((all, rest[..end].concat()))
}

/// `(dim,number)` after `floor`.
fn parse_floor(tokens: &[String], at: &mut usize) -> Option<Dim> {
    let (all, by) = parse_pair(tokens, at)?;
    by.parse().ok().filter(|by| *by > 0).map(|by| Dim::Floor(Box::new(all), by))
}

/// `(dim,ratio)` after `keep`.
fn parse_keep(tokens: &[String], at: &mut usize) -> Option<Dim> {
    let (all, ratio) = parse_pair(tokens, at)?;
    let valid = ratio.parse().is_ok_and(|share: f64| (0.0..1.0).contains(&share));
    valid.then(|| Dim::Keep(Box::new(all), ratio))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims() -> Dims {
        Dims::from([("T".into(), 16), ("H".into(), 64)])
    }

    #[test]
    fn expressions_have_values_and_print_as_written() {
        for (text, value) in [("T/2", 8), ("(H/16)*(H/16)+1", 17), ("T-2*3", 10), ("(T+H)/4", 20)] {
            let dim = Dim::parse(text).unwrap();
            assert_eq!(dim.value(&dims()), Ok(value), "{text}");
            let again = Dim::parse(&dim.to_string()).unwrap();
            assert_eq!(again.value(&dims()), Ok(value), "{dim}");
        }
    }

    #[test]
    fn a_remainder_is_an_error_that_names_both() {
        let error = Dim::parse("T/3").unwrap().value(&dims()).unwrap_err();
        assert_eq!(error.to_string(), "T = 16 is not a multiple of 3");
    }

    #[test]
    fn what_does_not_fit_is_dropped_on_request() {
        for (text, value) in [("floor(H,14)", 4), ("T*floor(H,60)+1", 17), ("floor(T+H,9)", 8)] {
            let dim = Dim::parse(text).unwrap();
            assert_eq!(dim.value(&dims()), Ok(value), "{text}");
            assert_eq!(dim.to_string(), text);
        }
        assert!(Dim::parse("floor(H,0)").is_err());
    }

    #[test]
    fn what_a_mask_leaves_visible_is_rounded_up() {
        for (text, value) in [("keep(256,0.8)", 52), ("T*keep(H*4,0.8)", 832), ("keep(T,0)+1", 17)]
        {
            let dim = Dim::parse(text).unwrap();
            assert_eq!(dim.value(&dims()), Ok(value), "{text}");
            assert_eq!(dim.to_string(), text);
        }
        assert_eq!(keep(2048, 0.8), 410);
        for text in ["keep(T)", "keep(T,1.5)", "keep(T,x)", "keep(T,0.5"] {
            assert!(Dim::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "T//2", "(T", "T)", "T+", "3x?"] {
            assert!(Dim::parse(text).is_err(), "{text}");
        }
    }
}
