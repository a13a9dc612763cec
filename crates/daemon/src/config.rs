//! Layered configuration: flag > `HEDDLE_*` environment variable > TOML file > default.
//!
//! There is one definition of an option: the field with `#[arg(long)]` in the program's clap struct.
//! `--node-name` is `HEDDLE_NODE_NAME` in the environment and `node-name` in the file. The layers are
//! laid *under* clap as default values, so that types, checks and `--help` are clap's own, and no layer
//! can forget an option. A value is checked in the layer that it stands in, also where a higher one
//! covers it, and an error names the variable, or the file and line.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::builder::OsStr as ClapStr;
use clap::{Arg, ArgAction, Command, Parser};
use toml::de::{DeTable, DeValue};

/// Options that both daemons have. Flatten it into the program's struct.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// TOML file with the same keys as these options [default: /etc/heddle/<program>.toml, if it exists]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// How logs are written to stderr
    #[arg(long, value_name = "FORMAT", default_value = "text", global = true)]
    pub log_format: crate::log::Format,
    /// What is logged: off, error, warn, info, debug, trace, or per module as in `warn,proxyd=debug`
    #[arg(long, value_name = "FILTER", default_value = "info", global = true)]
    pub log_level: crate::log::Level,
    /// Directory of the ready file and the lock
    #[arg(long, value_name = "DIR", default_value = "/run/heddle", global = true)]
    pub run_dir: PathBuf,
}

/// Why the configuration was refused. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line itself, `--help` and `--version` included; clap prints it best.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Syntax { path: PathBuf, message: String },
    #[error("{}:{line}: unknown key `{key}`{}", path.display(), hint(near.as_deref()))]
    UnknownKey { path: PathBuf, line: usize, key: String, near: Option<String> },
    #[error("{}:{line}: key `{key}`: {message}", path.display())]
    Value { path: PathBuf, line: usize, key: String, message: String },
    #[error("environment variable {name}: {message}")]
    Variable { name: String, message: String },
}

fn hint(near: Option<&str>) -> String {
    near.map(|key| format!(" (did you mean `{key}`?)")).unwrap_or_default()
}

/// Reads the program's configuration from its arguments, its environment and its file, or prints what is
/// wrong and ends the program with code 2 (0 for `--help` and `--version`).
pub fn parse<C: Parser>() -> C {
    match parse_from(std::env::args_os(), |name| std::env::var_os(name)) {
        Ok(cli) => cli,
        Err(Error::CommandLine(error)) => error.exit(),
        Err(error) => {
            let program = C::command().get_name().to_owned();
            crate::exit::complain(&program, &error);
            std::process::exit(crate::exit::USAGE.into())
        }
    }
}

/// As [`parse`], with everything passed in. An empty environment variable counts as unset.
pub fn parse_from<C: Parser>(
    args: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<C, Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let environment = |name: &str| environment(name).filter(|value| !value.is_empty());
    let command = layered(C::command(), &args, environment)?;
    let mut matches = command.clone().try_get_matches_from(args)?;
    Ok(C::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command.clone()))?)
}

/// The environment variable of an option: `HEDDLE_NODE_NAME` for `node-name`.
pub fn variable(option: &str) -> String {
    format!("HEDDLE_{}", option.to_uppercase().replace('-', "_"))
}

/// The options of a command that are configuration: every long option of the program itself. What only
/// a subcommand has (`-o`) belongs to that call and to no layer.
pub fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        !matches!(arg.get_long(), None | Some("help" | "version"))
            && !matches!(arg.get_action(), ArgAction::Help | ArgAction::Version)
    })
}

/// For the tests of the programs: proves that every option of `C` is known to all three layers and means
/// the same in each. `samples` holds a value other than the default for every option. The error says
/// which option fails, and how. `scratch` is a file that may be written.
pub fn layers_agree<C: Parser + std::fmt::Debug>(
    samples: &[(&str, &str)],
    scratch: &Path,
) -> Result<(), String> {
    let command = C::command();
    let flag = |long: &str| {
        let sample = samples.iter().find(|(name, _)| *name == long).map(|(_, sample)| *sample);
        sample.map(|sample| (format!("--{long}={sample}"), sample)).ok_or(format!("no sample for --{long}"))
    };
    for arg in options(&command) {
        let long = arg.get_long().filter(|long| *long != "config");
        let Some(long) = long else { continue };
        let (this, sample) = flag(long)?;
        let mut base = vec![command.get_name().to_owned()];
        for other in options(&command).filter(|other| other.is_required_set()).filter_map(Arg::get_long) {
            if other != long {
                base.push(flag(other)?.0);
            }
        }
        let run = |flag: Option<&str>, variables: &[(&str, &str)], file: &str| {
            std::fs::write(scratch, file).map_err(|error| error.to_string())?;
            let args = base.iter().map(String::as_str).chain(flag).map(OsString::from);
            let environment = |name: &str| match name {
                "HEDDLE_CONFIG" => Some(scratch.into()),
                _ => variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()),
            };
            parse_from::<C>(args, environment)
                .map(|cli| format!("{cli:?}"))
                .map_err(|error| crate::exit::chain(&error))
        };
        let unset = run(None, &[], "");
        let by_flag = run(Some(&this), &[], "");
        let by_variable = run(None, &[(&variable(long), sample)], "");
        let by_file = run(None, &[], &format!("{long} = {sample:?}"));
        if by_flag.is_err() || by_flag == unset || by_flag != by_variable || by_flag != by_file {
            return Err(format!(
                "--{long}\nunset: {unset:?}\nflag: {by_flag:?}\nenvironment: {by_variable:?}\nfile: {by_file:?}"
            ));
        }
    }
    Ok(())
}

fn layered(
    command: Command,
    args: &[OsString],
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Command, Error> {
    let named = flag(args, "--config").or_else(|| environment(&variable("config")));
    let mut below: BTreeMap<String, Vec<OsString>> = match named {
        Some(path) => read(&command, Path::new(&path), true)?,
        None => {
            read(&command, &Path::new("/etc/heddle").join(command.get_name()).with_extension("toml"), false)?
        }
    };
    for arg in options(&command) {
        let Some(long) = arg.get_long() else { continue };
        let name = variable(long);
        if let Some(text) = environment(&name) {
            let values = if many(arg) { split(&text) } else { vec![text] };
            check(arg, &values).map_err(|message| Error::Variable { name, message })?;
            below.insert(long.to_owned(), values);
        }
    }
    let about = "Every option can also be set in the environment (HEDDLE_NODE_NAME for --node-name) and \
                 in the TOML file (node-name). A flag wins over the environment, the environment over the file.";
    Ok(command.after_help(about).mut_args(|arg| match arg.get_long().and_then(|long| below.remove(long)) {
        Some(values) => arg.default_values(values.into_iter().map(ClapStr::from)).required(false),
        None => arg,
    }))
}

/// The value of an option that must be known before the command line can be parsed.
fn flag(args: &[OsString], name: &str) -> Option<OsString> {
    let mut args = args.iter().skip(1).take_while(|arg| *arg != "--");
    let prefix = format!("{name}=");
    let mut found = None;
    while let Some(arg) = args.next() {
        if arg == name {
            found = args.next().cloned();
        } else if let Some(value) = arg.to_str().and_then(|arg| arg.strip_prefix(&prefix)) {
            found = Some(value.into());
        }
    }
    found
}

fn many(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

fn split(list: &OsStr) -> Vec<OsString> {
    match list.to_str() {
        Some(list) => list.split(',').map(str::trim).filter(|s| !s.is_empty()).map(Into::into).collect(),
        None => vec![list.to_owned()],
    }
}

/// Asks clap whether the option takes these values, alone, so that the answer is about this layer.
fn check(arg: &Arg, values: &[OsString]) -> Result<(), String> {
    let arg = arg.clone().required(false).global(false);
    let long = arg.get_long().unwrap_or_default().to_owned();
    let takes_value = arg.get_action().takes_values();
    let id = arg.get_id().clone();
    let command = Command::new("check").arg(arg);
    let outcome = if takes_value {
        let flags = values.iter().map(|value| {
            let mut flag = OsString::from(format!("--{long}="));
            flag.push(value);
            flag
        });
        command.try_get_matches_from(std::iter::once("check".into()).chain(flags))
    } else {
        // A switch: its value is true or false, which clap reads from a default value.
        let command = command.mut_arg(id, |arg| arg.default_values(values.iter().map(ClapStr::from)));
        command.try_get_matches_from(["check"])
    };
    outcome.map(drop).map_err(|error| {
        // Of clap's message only what it says, not how it frames it.
        let text = error.to_string();
        let said = text.trim_start_matches("error: ").split("\n\nFor more information").next();
        said.unwrap_or_default().trim().replace("\n", " ").replace("  ", " ")
    })
}

fn read(command: &Command, path: &Path, must_exist: bool) -> Result<BTreeMap<String, Vec<OsString>>, Error> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => return Ok(BTreeMap::new()),
        Err(source) => return Err(Error::Read { path: path.into(), source }),
    };
    let table = DeTable::parse(&text)
        .map_err(|error| Error::Syntax { path: path.into(), message: error.to_string().trim().into() })?;
    let mut values = BTreeMap::new();
    for (key, value) in table.get_ref() {
        let line = text[..key.span().start].lines().count().max(1)
            + usize::from(text[..key.span().start].ends_with('\n'));
        let key = key.get_ref().to_string();
        let Some(arg) = options(command).find(|arg| arg.get_long() == Some(&key) && key != "config") else {
            let near = key.to_lowercase().replace('_', "-");
            let near = options(command).filter_map(Arg::get_long).find(|long| *long == near && near != key);
            return Err(Error::UnknownKey { path: path.into(), line, near: near.map(Into::into), key });
        };
        let refuse = |message: String| Error::Value { path: path.into(), line, key: key.clone(), message };
        let list = match value.get_ref() {
            DeValue::Array(list) if many(arg) => list.iter().map(|v| scalar(v.get_ref())).collect(),
            one => scalar(one).map(|one| vec![one]),
        };
        let list: Vec<OsString> =
            list.map_err(|what| refuse(format!("{what} where one value is expected")))?;
        check(arg, &list).map_err(refuse)?;
        values.insert(key, list);
    }
    Ok(values)
}

fn scalar(value: &DeValue<'_>) -> Result<OsString, &'static str> {
    match value {
        DeValue::String(text) => Ok(text.as_ref().into()),
        DeValue::Integer(number) => Ok(number.to_string().into()),
        DeValue::Float(number) => Ok(number.to_string().into()),
        DeValue::Boolean(truth) => Ok(truth.to_string().into()),
        DeValue::Datetime(_) => Err("a date"),
        DeValue::Array(_) => Err("a list"),
        DeValue::Table(_) => Err("a table"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[derive(Debug, Parser)]
    #[command(name = "weaver")]
    struct Cli {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..0x100_0000), global = true)]
        vni: u32,
        #[arg(long)]
        node_name: String,
        #[arg(long)]
        underlay: Vec<String>,
        #[arg(long)]
        dry: bool,
        #[command(subcommand)]
        command: Option<Sub>,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Sub {
        Status,
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn parse(args: &[&str], env: &[(&str, &str)], file: &Path) -> Result<Cli, Error> {
        let first = ["weaver", "--config", file.to_str().unwrap()];
        let args = first.iter().chain(args).map(Into::into);
        parse_from(args, |name| env.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
    }

    #[test]
    fn flag_over_environment_over_file_over_default() {
        let f = file("vni = 7\nnode-name = 'from-file'\n");
        let env = [("HEDDLE_VNI", "8"), ("HEDDLE_NODE_NAME", "from-env")];
        let vni_and_name = |args: &[&str], env: &[_], f: &Path| {
            let cli = parse(args, env, f).unwrap();
            (cli.vni, cli.node_name)
        };
        let flags = ["--vni", "9", "--node-name", "from-flag"];
        assert_eq!(vni_and_name(&flags, &env, f.path()), (9, "from-flag".into()));
        assert_eq!(vni_and_name(&[], &env, f.path()), (8, "from-env".into()));
        assert_eq!(vni_and_name(&[], &[("HEDDLE_VNI", "")], f.path()), (7, "from-file".into()));
        assert_eq!(vni_and_name(&flags[2..], &[], file("").path()), (1, "from-flag".into()));
    }

    #[test]
    fn a_global_option_keeps_its_layers_below_a_subcommand() {
        let f = file("vni = 7\nnode-name = 'n'\n");
        let vni = |args: &[&str], env: &[_]| parse(args, env, f.path()).unwrap().vni;
        assert_eq!(vni(&["status"], &[]), 7);
        assert_eq!(vni(&["status"], &[("HEDDLE_VNI", "8")]), 8);
        assert_eq!(vni(&["--vni", "9", "status"], &[("HEDDLE_VNI", "8")]), 9);
        assert_eq!(vni(&["status", "--vni", "9"], &[("HEDDLE_VNI", "8")]), 9);
    }

    #[test]
    fn lists_and_switches_have_all_layers() {
        let f = file("node-name = 'n'\nunderlay = ['a', 'b']\ndry = true\n");
        let cli = parse(&[], &[], f.path()).unwrap();
        assert_eq!((cli.underlay, cli.dry), (vec!["a".to_owned(), "b".into()], true));
        let cli = parse(&[], &[("HEDDLE_UNDERLAY", "c, d"), ("HEDDLE_DRY", "false")], f.path()).unwrap();
        assert_eq!((cli.underlay, cli.dry), (vec!["c".to_owned(), "d".into()], false));
        let cli = parse(&["--underlay", "e"], &[("HEDDLE_UNDERLAY", "c")], f.path()).unwrap();
        assert_eq!(cli.underlay, ["e"]);
    }

    #[test]
    fn an_error_names_the_layer_the_key_and_the_line() {
        let message = |args: &[&str], env: &[_], text: &str| {
            let f = file(text);
            let error = parse(args, env, f.path()).unwrap_err().to_string();
            error.replace(f.path().to_str().unwrap(), "FILE")
        };
        let unknown = message(&[], &[], "\n# it\nnode_name = 'n'\n");
        assert_eq!(unknown, "FILE:3: unknown key `node_name` (did you mean `node-name`?)");
        let config = message(&[], &[], "config = 'other.toml'\n");
        assert_eq!(config, "FILE:1: unknown key `config`", "a file does not name its successor");
        let value = message(&["--vni", "5"], &[], "node-name = 'n'\nvni = 16777216");
        assert!(value.starts_with("FILE:2: key `vni`: invalid value '16777216'"), "{value}");
        let list = message(&[], &[], "node-name = ['n']");
        assert_eq!(list, "FILE:1: key `node-name`: a list where one value is expected");
        let table = message(&[], &[], "[vni]\nx = 1");
        assert!(table.contains("key `vni`: a table where"), "{table}");
        let variable = message(&[], &[("HEDDLE_VNI", "x")], "node-name = 'n'");
        assert!(variable.starts_with("environment variable HEDDLE_VNI: invalid value 'x'"), "{variable}");
        assert!(message(&[], &[], "node-name = ").starts_with("FILE: TOML parse error at line 1"));
        assert!(message(&[], &[], "").contains("--node-name"), "what is missing is named");
    }

    #[test]
    fn every_layer_knows_every_option() {
        let scratch = file("");
        let samples = [
            ("log-format", "json"),
            ("log-level", "debug"),
            ("run-dir", "/x"),
            ("vni", "3"),
            ("node-name", "n"),
            ("underlay", "a"),
        ];
        let error = layers_agree::<Cli>(&samples, scratch.path()).unwrap_err();
        assert_eq!(error, "no sample for --dry");
    }

    #[test]
    fn a_file_that_is_named_must_exist() {
        let error = parse(&[], &[], Path::new("/nowhere/x.toml")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read /nowhere/x.toml: "), "{error}");
    }
}
