//! `status`, for people.

use std::io::{self, Write};

use serde_json::Value;

use super::text;

pub(super) fn show(told: &Value, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "unionfs {}, process {} of user {}, for {} s{}",
        text(&told["version"]),
        told["pid"],
        told["uid"],
        told["uptime_seconds"],
        if told["supervised"] == true {
            ", supervised"
        } else {
            ""
        }
    )?;
    layers(told, out)?;
    let data = &told["data"];
    writeln!(
        out,
        "data: open={} ({})",
        text(&data["way"]),
        text(&data["why"])
    )?;
    let options = &told["options"];
    let options = options.as_object().into_iter().flatten();
    let options = options.map(|(name, value)| match value {
        Value::Null => format!("{name}=without end"),
        Value::String(value) => format!("{name}={value}"),
        value => format!("{name}={value}"),
    });
    writeln!(out, "in effect: {}", options.collect::<Vec<_>>().join(", "))?;
    let fallbacks = told["fallbacks"].as_array().map_or(&[][..], |all| all);
    if fallbacks.is_empty() {
        writeln!(out, "instead of something better: nothing")?;
    } else {
        writeln!(out, "instead of something better:")?;
    }
    for one in fallbacks {
        writeln!(out, "  {} ({})", text(&one["what"]), text(&one["why"]))?;
    }
    if let Some(missing) = told["not_possible_on_upper"].as_array()
        && !missing.is_empty()
    {
        let missing: Vec<String> = missing.iter().map(text).collect();
        writeln!(out, "not possible on the upper: {}", missing.join(", "))?;
    }
    let command = told["command"].as_array().into_iter().flatten();
    let command: Vec<String> = command.map(text).collect();
    writeln!(out, "command: {}", command.join(" "))
}

/// The layers, top first.
pub(super) fn layers(told: &Value, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "layers, the top one first:")?;
    for layer in told["layers"].as_array().into_iter().flatten() {
        let takes = match layer["writes"].as_str() {
            Some(form) => format!("takes changes, whiteouts as {form} has them"),
            None if layer["reads"] == Value::Array(Vec::new()) => {
                "read only, its whiteouts do not count".to_owned()
            }
            None => "read only".to_owned(),
        };
        let (role, path) = (text(&layer["role"]), text(&layer["path"]));
        writeln!(out, "  {role}  {path}  ({takes})")?;
    }
    Ok(())
}
