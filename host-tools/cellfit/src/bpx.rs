//! What a BPX file (Battery Parameter eXchange, Faraday Institution) tells for an equivalent circuit: the curve at rest, its
//! slope over temperature, the capacity, and the negative electrode with its window.
//!
//! ```text
//! OCV(z) = Up(y0 + z (y1 - y0)) - Un(x0 + z (x1 - x0))        x0, x1: minimum and maximum stoichiometry of the negative,
//!                                                             y0, y1: maximum and minimum of the positive electrode
//! Q = F c_max (x1 - x0) A n L a R / 3                         the smaller of both electrodes'; a R / 3 is the share of particles
//! ```
//!
//! A BPX file holds the physics of a cell, not a circuit: resistances and time constants still come from a recording with a lively
//! current, measured or simulated. Deriving them from the physics would be a guess about what the recording knows.

use serde_json::Value;

use crate::electrodes::Negative;
use crate::slow::{POINTS, SlowTest, soc_of};

const FARADAY: f64 = 96_485.332;

/// What was found in a BPX file.
#[derive(Clone, Debug)]
pub struct Bpx {
    /// Title of the file.
    pub title: String,
    /// As a slow test would show it, at the file's reference temperature.
    pub test: SlowTest,
    /// Slope of the curve over temperature [V/K].
    pub per_k: Vec<f64>,
    /// Negative electrode.
    pub negative: Negative,
}

/// A function of BPX: a number, a table or an expression of `x`.
enum Function {
    Number(f64),
    Table(Vec<f64>, Vec<f64>),
    Expression(Vec<Token>),
}

impl Function {
    fn new(value: &Value) -> Result<Self, String> {
        match value {
            Value::Number(n) => Ok(Self::Number(n.as_f64().unwrap_or(0.0))),
            Value::String(text) => {
                let tokens = tokens(text)?;
                // Tried once, so that later nothing can fail.
                evaluate(&tokens, 0.5)?;
                Ok(Self::Expression(tokens))
            }
            Value::Object(table) => {
                let list = |key: &str| -> Vec<f64> {
                    let list = table.get(key).and_then(Value::as_array);
                    list.into_iter()
                        .flatten()
                        .filter_map(Value::as_f64)
                        .collect()
                };
                let (x, y) = (list("x"), list("y"));
                let rises = x.windows(2).all(|p| p[1] > p[0]);
                if x.len() < 2 || x.len() != y.len() || !rises {
                    return Err(
                        "a table needs as many y as x, at least two, and x that rises".into(),
                    );
                }
                Ok(Self::Table(x, y))
            }
            _ => Err("neither a number, a table nor an expression of x".into()),
        }
    }

    fn at(&self, x: f64) -> f64 {
        match self {
            Self::Number(n) => *n,
            Self::Table(xs, ys) => {
                let k = xs.partition_point(|p| *p <= x).clamp(1, xs.len() - 1);
                ys[k - 1] + (ys[k] - ys[k - 1]) * (x - xs[k - 1]) / (xs[k] - xs[k - 1])
            }
            Self::Expression(tokens) => evaluate(tokens, x).unwrap_or(f64::NAN),
        }
    }
}

impl Bpx {
    /// Reads the text of a file. Errors say which key is wrong and what to do.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: Value =
            serde_json::from_str(text).map_err(|e| format!("{e}; a BPX file is JSON"))?;
        let part = |name: &str| {
            file.get("Parameterisation").and_then(|p| p.get(name)).ok_or_else(|| {
                format!("there is no {name:?} under \"Parameterisation\"; is it a BPX file of a cell?")
            })
        };
        let (cell, negative, positive) = (
            part("Cell")?,
            part("Negative electrode")?,
            part("Positive electrode")?,
        );
        let number = |of: &Value, key: &str| {
            of.get(key).and_then(Value::as_f64).filter(|n| n.is_finite()).ok_or_else(|| format!("{key:?} is missing or not a number; blended electrodes are not understood, give --ocv instead"))
        };
        let function = |of: &Value, key: &str| {
            let value = of.get(key).ok_or_else(|| format!("{key:?} is missing"))?;
            Function::new(value).map_err(|e| format!("{key:?}: {e}"))
        };
        let window = |of: &Value| {
            Ok::<_, String>((
                number(of, "Minimum stoichiometry")?,
                number(of, "Maximum stoichiometry")?,
            ))
        };
        let (x0, x1) = window(negative)?;
        let (y1, y0) = window(positive)?;
        let area = number(cell, "Electrode area [m2]")?
            * number(
                cell,
                "Number of electrode pairs connected in parallel to make a cell",
            )?;
        let capacity = |of: &Value, span: f64| {
            let share = number(of, "Surface area per unit volume [m-1]")?
                * number(of, "Particle radius [m]")?
                / 3.0;
            let volume = area * number(of, "Thickness [m]")? * share;
            Ok::<_, String>(
                FARADAY * number(of, "Maximum concentration [mol.m-3]")? * span * volume / 3600.0,
            )
        };
        let capacity_ah = capacity(negative, x1 - x0)?.min(capacity(positive, y0 - y1)?);
        if !(capacity_ah > 1e-3 && x1 > x0 && y0 > y1) {
            return Err("stoichiometries and sizes give no capacity; check the minimum and maximum stoichiometries".into());
        }
        let (un, up) = (
            function(negative, "OCP [V]")?,
            function(positive, "OCP [V]")?,
        );
        const ENTROPY: &str = "Entropic change coefficient [V.K-1]";
        let entropy = |of: &Value| match of.get(ENTROPY) {
            None | Some(Value::Null) => Ok(Function::Number(0.0)),
            Some(_) => function(of, ENTROPY),
        };
        let (dun, dup) = (entropy(negative)?, entropy(positive)?);
        let at = |f: &Function, a: f64, b: f64, k: usize| f.at(a + soc_of(k) * (b - a));
        let mut ocv: Vec<f64> = (0..POINTS)
            .map(|k| at(&up, y0, y1, k) - at(&un, x0, x1, k))
            .collect();
        let per_k: Vec<f64> = (0..POINTS)
            .map(|k| (at(&dup, y0, y1, k) - at(&dun, x0, x1, k)).clamp(-0.002, 0.002))
            .collect();
        if let Some(k) = ocv.iter().position(|v| !(0.5..6.0).contains(v)) {
            return Err(format!(
                "the electrodes' OCP give {} V at {k} % state of charge; check \"OCP [V]\" and the stoichiometries",
                ocv[k]
            ));
        }
        for k in 1..POINTS {
            ocv[k] = ocv[k].max(ocv[k - 1]);
        }
        let reference = cell
            .get("Reference temperature [K]")
            .and_then(Value::as_f64)
            .unwrap_or(298.15);
        let mv: [f32; POINTS] = std::array::from_fn(|k| {
            // An expression may run away outside the window where nobody looked.
            (1e3 * un.at(soc_of(k))).clamp(-1_000.0, 5_000.0) as f32
        });
        let title = file
            .get("Header")
            .and_then(|h| h.get("Title"))
            .and_then(Value::as_str)
            .unwrap_or("BPX");
        Ok(Self {
            title: title.into(),
            test: SlowTest {
                name: "electrodes of the BPX file".into(),
                temp_c: reference - crate::dynamic::KELVIN,
                capacity_ah,
                efficiency: None,
                current_a: 0.0,
                ocv,
                half_gap: None,
                measured: vec![true; POINTS],
            },
            per_k,
            negative: Negative {
                name: "of the BPX file",
                mv,
                window: [x0, x1],
            },
        })
    }
}

/// A piece of an expression.
#[derive(Clone, Debug)]
enum Token {
    Number(f64),
    X,
    Call(fn(f64) -> f64),
    Op(char),
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let chars: Vec<char> = text.chars().collect();
    let (mut k, mut out) = (0, Vec::new());
    while let Some(&c) = chars.get(k) {
        let begin = k;
        if c.is_whitespace() {
            k += 1;
        } else if c.is_ascii_digit() || c == '.' {
            while let Some(&c) = chars.get(k) {
                let sign_of_exponent =
                    (c == '+' || c == '-') && k > begin && matches!(chars[k - 1], 'e' | 'E');
                if !(c.is_ascii_digit() || c == '.' || c == 'e' || c == 'E' || sign_of_exponent) {
                    break;
                }
                k += 1;
            }
            let word: String = chars[begin..k].iter().collect();
            out.push(Token::Number(
                word.parse().map_err(|_| format!("{word:?} is no number"))?,
            ));
        } else if c.is_alphabetic() {
            while chars
                .get(k)
                .is_some_and(|c| c.is_alphanumeric() || *c == '_' || *c == '.')
            {
                k += 1;
            }
            let word: String = chars[begin..k].iter().collect();
            let word = word.rsplit('.').next().unwrap_or_default();
            out.push(match word {
                "x" => Token::X,
                "exp" => Token::Call(f64::exp),
                "log" => Token::Call(f64::ln),
                "sqrt" => Token::Call(f64::sqrt),
                "tanh" => Token::Call(f64::tanh),
                "sinh" => Token::Call(f64::sinh),
                "cosh" => Token::Call(f64::cosh),
                "sin" => Token::Call(f64::sin),
                "cos" => Token::Call(f64::cos),
                "abs" => Token::Call(f64::abs),
                _ => return Err(format!("{word:?} is not understood; x, exp, log, sqrt, tanh, sinh, cosh, sin, cos and abs are")),
            });
        } else if c == '*' && chars.get(k + 1) == Some(&'*') {
            out.push(Token::Op('^'));
            k += 2;
        } else if "+-*/()^".contains(c) {
            out.push(Token::Op(c));
            k += 1;
        } else {
            return Err(format!("{c:?} is not understood in an expression"));
        }
    }
    Ok(out)
}

fn evaluate(tokens: &[Token], x: f64) -> Result<f64, String> {
    let mut at = 0;
    let value = sum(tokens, &mut at, x, 0)?;
    match tokens.get(at) {
        None => Ok(value),
        Some(_) => {
            Err("the expression goes on where it should end; look at its parentheses".into())
        }
    }
}

fn sum(t: &[Token], at: &mut usize, x: f64, depth: u32) -> Result<f64, String> {
    let mut value = product(t, at, x, depth)?;
    while let Some(Token::Op(op @ ('+' | '-'))) = t.get(*at) {
        *at += 1;
        let right = product(t, at, x, depth)?;
        value += if *op == '+' { right } else { -right };
    }
    Ok(value)
}

fn product(t: &[Token], at: &mut usize, x: f64, depth: u32) -> Result<f64, String> {
    let mut value = signed(t, at, x, depth)?;
    while let Some(Token::Op(op @ ('*' | '/'))) = t.get(*at) {
        *at += 1;
        let right = signed(t, at, x, depth)?;
        value = if *op == '*' {
            value * right
        } else {
            value / right
        };
    }
    Ok(value)
}

/// As in Python, a sign binds weaker than a power on its right.
fn signed(t: &[Token], at: &mut usize, x: f64, depth: u32) -> Result<f64, String> {
    if depth > 60 {
        return Err("the expression is nested too deeply".into());
    }
    match t.get(*at) {
        Some(Token::Op(op @ ('+' | '-'))) => {
            *at += 1;
            let value = signed(t, at, x, depth + 1)?;
            Ok(if *op == '-' { -value } else { value })
        }
        _ => {
            let base = atom(t, at, x, depth)?;
            if let Some(Token::Op('^')) = t.get(*at) {
                *at += 1;
                return Ok(base.powf(signed(t, at, x, depth + 1)?));
            }
            Ok(base)
        }
    }
}

fn atom(t: &[Token], at: &mut usize, x: f64, depth: u32) -> Result<f64, String> {
    let token = t.get(*at).ok_or("the expression ends too early")?;
    *at += 1;
    match token {
        Token::Number(n) => Ok(*n),
        Token::X => Ok(x),
        Token::Call(f) => Ok(f(atom(t, at, x, depth + 1)?)),
        Token::Op('(') => {
            let value = sum(t, at, x, depth + 1)?;
            if !matches!(t.get(*at), Some(Token::Op(')'))) {
                return Err("a closing parenthesis is missing".into());
            }
            *at += 1;
            Ok(value)
        }
        Token::Op(op) => Err(format!("{op:?} stands where a number should be")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_mean_what_they_mean_in_python() {
        for (text, x, value) in [
            ("2 * x ** 2 - 3e-1 / -x", 2.0, 8.15),
            ("-x ** 2 ** 0.5", 4.0, -(4f64.powf(2f64.sqrt()))),
            (
                "1.5 * exp(-2 * (x - 1)) + tanh(x / 2)",
                1.0,
                1.5 + 0.5f64.tanh(),
            ),
            ("np.sqrt(x) + 1E+2 - (((x)))", 9.0, 94.0),
        ] {
            let got = evaluate(&tokens(text).unwrap(), x).unwrap();
            assert!((got - value).abs() < 1e-9, "{text}: {got}");
        }
        for wrong in ["2 *", "(x", "x)", "import os", "x # 2", "1.2.3", "", "** 2"] {
            assert!(
                tokens(wrong).and_then(|t| evaluate(&t, 0.5)).is_err(),
                "{wrong}"
            );
        }
        let deep = "(".repeat(5_000) + "x" + &")".repeat(5_000);
        assert!(evaluate(&tokens(&deep).unwrap(), 0.5).is_err());
    }

    #[test]
    fn electrodes_become_a_curve_and_a_capacity() {
        let side = |ocp: &str, low: f64, high: f64, concentration: f64| {
            serde_json::json!({
                "OCP [V]": ocp, "Minimum stoichiometry": low, "Maximum stoichiometry": high,
                "Surface area per unit volume [m-1]": 3e5, "Particle radius [m]": 5e-6, "Thickness [m]": 5e-5,
                "Maximum concentration [mol.m-3]": concentration, "Entropic change coefficient [V.K-1]": 1e-4,
            })
        };
        let mut file = serde_json::json!({
            "Header": {"Title": "test"},
            "Parameterisation": {
                "Cell": {"Electrode area [m2]": 0.1, "Number of electrode pairs connected in parallel to make a cell": 2},
                "Negative electrode": side("0.3 - 0.2 * x", 0.1, 0.9, 30_000.0),
                "Positive electrode": side("4.4 - x", 0.2, 0.8, 50_000.0),
            }
        });
        let bpx = Bpx::parse(&file.to_string()).unwrap();
        // 30 000 mol/m³ of the negative electrode used to 0.8: less than 50 000 of the positive to 0.6.
        let q = 96_485.332 * 30_000.0 * 0.8 * 0.1 * 2.0 * 5e-5 * 0.5 / 3600.0;
        assert!((bpx.test.capacity_ah - q).abs() < 1e-9);
        assert!(
            (bpx.test.ocv[0] - (3.6 - 0.28)).abs() < 1e-9
                && (bpx.test.ocv[100] - (4.2 - 0.12)).abs() < 1e-9
        );
        assert_eq!(bpx.negative.window, [0.1, 0.9]);
        assert!(bpx.per_k.iter().all(|p| p.abs() < 1e-12));
        file["Parameterisation"]["Negative electrode"]["OCP [V]"] = "0.3 - y".into();
        let wrong = Bpx::parse(&file.to_string()).unwrap_err();
        assert!(
            wrong.contains("OCP [V]") && wrong.contains("\"y\""),
            "{wrong}"
        );
        assert!(Bpx::parse("{}").unwrap_err().contains("Cell"));
    }
}
