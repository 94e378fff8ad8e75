//! What the lexer must know of programs: which of their words are read as code again, and which
//! begin a command anew.
//!
//! - A program that is not listed takes all its words as plain arguments; in them, a shell's or an
//!   interpreter's name followed by its code option is still recognised (`docker exec c sh -c …`).
//! - Where the words of a listed program cannot be told apart with certainty (an unknown option of
//!   a program whose arguments matter), no value may follow.

/// What an operand (a word that is no option) means to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    /// An argument like any other.
    Plain,
    /// Read as code.
    Code,
    /// The file whose content is run.
    File,
    /// The first word of another command.
    Command,
}

/// How a program reads its words.
#[derive(Debug, PartialEq)]
pub(super) struct Program {
    pub names: &'static [&'static str],
    /// Short options that take code.
    pub code: &'static str,
    /// Short options that take one argument.
    pub args: &'static str,
    /// Short options that take none; `*` for all that are not named otherwise.
    pub flags: &'static str,
    pub code_long: &'static [&'static str],
    /// Long options with so many arguments of their own.
    pub args_long: &'static [(&'static str, u8)],
    pub flags_long: &'static [&'static str],
    /// What the operands mean, in order; the last stands for all that follow.
    pub operands: &'static [Operand],
    /// The code comes with the option, so that the first operand is no code any more.
    pub code_replaces: bool,
    /// Options are options behind operands too.
    pub permutes: bool,
    /// Without code or file it runs what it reads.
    pub runs_input: bool,
    /// Words `NAME=value` before the command are assignments.
    pub assigns: bool,
    pub remedy: &'static str,
}

use Operand::{Code, Command, File, Plain};

const BASE: Program = Program {
    names: &[],
    code: "",
    args: "",
    flags: "*",
    code_long: &[],
    args_long: &[],
    flags_long: &["*"],
    operands: &[Plain],
    code_replaces: false,
    permutes: false,
    runs_input: false,
    assigns: false,
    remedy: "",
};

/// A program that runs the command in its operands.
const PREFIX: Program = Program {
    flags: "",
    flags_long: &[],
    operands: &[Command],
    remedy: "write the command's words out",
    ..BASE
};

const SHELL_REMEDY: &str = "pass it as an argument of its own: sh -c '… \"$1\"' sh {{ v }}";
pub(super) const NAME_REMEDY: &str =
    "the shell reads a variable's name there, and evaluates it; write the name out";
const WHOLE_REMEDY: &str = "call the command directly, with the value as one of its arguments";
const SQL_REMEDY: &str = "pass it as a variable of the client's, not as a part of the statement";

pub(super) static PROGRAMS: &[Program] = &[
    Program {
        names: &[
            "sh", "bash", "dash", "ash", "ksh", "mksh", "zsh", "rbash", "yash", "fish", "csh", "tcsh",
            "posh", "oksh", "nu", "elvish", "xonsh",
        ],
        code: "c",
        args: "oO",
        code_long: &["--rcfile", "--init-file", "--command"],
        operands: &[File, Plain],
        code_replaces: true,
        runs_input: true,
        remedy: SHELL_REMEDY,
        ..BASE
    },
    Program {
        names: &["python", "python2", "python3", "pypy", "pypy3"],
        code: "c",
        args: "WXQ",
        operands: &[File, Plain],
        code_replaces: true,
        runs_input: true,
        remedy: "pass it as an argument of its own: python -c '… sys.argv[1] …' {{ v }}",
        ..BASE
    },
    Program {
        names: &["perl", "ruby"],
        code: "eE",
        args: "",
        operands: &[File, Plain],
        code_replaces: true,
        runs_input: true,
        remedy: "pass it as an argument of its own: perl -e '… $ARGV[0] …' {{ v }}",
        ..BASE
    },
    Program {
        names: &["node", "nodejs", "bun", "deno"],
        code: "epr",
        code_long: &["--eval", "--print", "--require", "--import", "--loader"],
        operands: &[File, Plain],
        code_replaces: true,
        runs_input: true,
        remedy: "pass it as an argument of its own: node -e '… process.argv[1] …' {{ v }}",
        ..BASE
    },
    Program {
        names: &[
            "php",
            "lua",
            "Rscript",
            "tclsh",
            "expect",
            "osascript",
            "guile",
            "groovy",
            "scala",
            "pwsh",
            "luajit",
            "julia",
            "irb",
            "elixir",
            "erl",
            "ghci",
            "ocaml",
            "sbcl",
            "racket",
            "jshell",
            "octave",
        ],
        code: "recfR",
        args: "",
        code_long: &["--run", "--eval", "--execute"],
        operands: &[File, Plain],
        code_replaces: true,
        runs_input: true,
        remedy: "pass it as an argument of its own",
        ..BASE
    },
    Program {
        names: &["awk", "gawk", "mawk", "nawk"],
        code: "eiEfl",
        code_replaces: true,
        args: "vF",
        flags: "",
        code_long: &["--source", "--file", "--include", "--load", "--exec"],
        args_long: &[("--assign", 1), ("--field-separator", 1)],
        flags_long: &["--posix", "--traditional", "--csv"],
        operands: &[Code, Plain],
        remedy: "pass it through the environment: v={{ v }} awk '… ENVIRON[\"v\"] …'",
        ..BASE
    },
    Program {
        names: &["sed", "gsed"],
        code: "ef",
        args: "l",
        flags: "nErsuziIb",
        code_long: &["--expression", "--file"],
        args_long: &[("--line-length", 1)],
        flags_long: &[
            "--quiet",
            "--silent",
            "--regexp-extended",
            "--null-data",
            "--in-place",
            "--posix",
            "--debug",
            "--separate",
            "--unbuffered",
            "--sandbox",
            "--follow-symlinks",
        ],
        operands: &[Code, Plain],
        code_replaces: true,
        permutes: true,
        remedy: "use awk, and pass it through the environment: v={{ v }} awk '… ENVIRON[\"v\"] …'",
        ..BASE
    },
    Program {
        names: &["jq", "gojq", "jaq"],
        code: "",
        args: "fL",
        flags: "rcnsSeajCMRh",
        args_long: &[
            ("--arg", 2),
            ("--argjson", 2),
            ("--slurpfile", 2),
            ("--rawfile", 2),
            ("--indent", 1),
            ("--from-file", 1),
        ],
        flags_long: &[
            "--raw-output",
            "--raw-output0",
            "--compact-output",
            "--null-input",
            "--slurp",
            "--sort-keys",
            "--exit-status",
            "--tab",
            "--join-output",
            "--raw-input",
            "--ascii-output",
            "--color-output",
            "--monochrome-output",
            "--seq",
            "--stream",
            "--unbuffered",
            "--args",
            "--jsonargs",
        ],
        operands: &[Code, Plain],
        permutes: true,
        remedy: "pass it as a variable: jq --arg v {{ v }} '… $v …'",
        ..BASE
    },
    Program {
        names: &["yq"],
        flags: "",
        flags_long: &[],
        operands: &[Code, Plain],
        permutes: true,
        remedy: "pass it through the environment: v={{ v }} yq '… strenv(v) …'",
        ..BASE
    },
    Program {
        names: &["psql"],
        code: "cf",
        args: "dhopUvFPRTL",
        code_long: &["--command", "--file"],
        permutes: true,
        runs_input: true,
        code_replaces: true,
        remedy: SQL_REMEDY,
        ..BASE
    },
    Program {
        names: &["mysql", "mariadb"],
        code: "e",
        args: "hPuDS",
        code_long: &["--execute"],
        permutes: true,
        runs_input: true,
        code_replaces: true,
        remedy: SQL_REMEDY,
        ..BASE
    },
    Program {
        names: &["sqlite3"],
        operands: &[Plain, Code],
        runs_input: true,
        remedy: SQL_REMEDY,
        ..BASE
    },
    Program {
        names: &["mongo", "mongosh"],
        code_long: &["--eval"],
        permutes: true,
        runs_input: true,
        code_replaces: true,
        remedy: SQL_REMEDY,
        ..BASE
    },
    Program {
        names: &[
            "bc", "dc", "ed", "ex", "vi", "vim", "nvim", "emacs", "at", "batch", "crontab", "gdb", "m4",
            "cqlsh", "lftp", "ftp", "parallel", "duckdb",
        ],
        code: "cefE",
        code_long: &["--eval", "--command", "--expression"],
        permutes: true,
        runs_input: true,
        remedy: WHOLE_REMEDY,
        ..BASE
    },
    Program {
        names: &["make", "gmake", "just", "ninja"],
        args: "CjolWd",
        code: "fI",
        code_long: &["--file", "--makefile", "--eval", "--directory"],
        operands: &[Code],
        permutes: true,
        remedy: "pass it through the environment: v={{ v }} make, and \"$$v\" in the recipe",
        ..BASE
    },
    Program {
        names: &["ssh", "rsh", "dbclient", "mosh"],
        code: "oOSFDIL",
        args: "bcEeilJmpQRWwB",
        operands: &[Plain, Code],
        runs_input: true,
        remedy: "send it as input: printf '%s\\n' {{ v }} | ssh host 'read -r v; … \"$v\"'",
        ..BASE
    },
    Program {
        names: &["su", "runuser"],
        code: "c",
        args: "gGswu",
        code_long: &["--command", "--session-command"],
        permutes: true,
        runs_input: true,
        code_replaces: true,
        remedy: SHELL_REMEDY,
        ..BASE
    },
    Program {
        names: &[
            "eval", "watch", "bind", "compgen", "complete", "fc", "entr", "tmux", "screen", "jobs", "tcpdump",
        ],
        operands: &[Code],
        flags: "",
        flags_long: &[],
        remedy: WHOLE_REMEDY,
        ..BASE
    },
    Program {
        names: &["trap"],
        operands: &[Code],
        remedy: "keep it in a variable, and name that in the trap: v={{ v }}; trap 'echo \"$v\"' EXIT",
        ..BASE
    },
    Program {
        names: &[
            "let",
            "unset",
            "read",
            "getopts",
            "mapfile",
            "readarray",
            "enable",
        ],
        code: "abcdefghijklmnopqrstuvwxyzACDEINO",
        operands: &[Code],
        remedy: NAME_REMEDY,
        ..BASE
    },
    Program {
        names: &["printf", "wait"],
        code: "vp",
        flags: "*",
        remedy: NAME_REMEDY,
        ..BASE
    },
    Program {
        names: &["test", "["],
        code: "vR",
        flags: "*",
        permutes: true,
        remedy: NAME_REMEDY,
        ..BASE
    },
    Program {
        names: &[".", "source"],
        operands: &[File, Plain],
        remedy: "write the file's name out",
        ..BASE
    },
    Program {
        names: &["set"],
        operands: &[File],
        remedy: "write `set -- {{ v }}`, so that it cannot be an option",
        ..BASE
    },
    Program {
        names: &["tar", "bsdtar"],
        code: "IF",
        code_long: &[
            "--to-command",
            "--checkpoint-action",
            "--use-compress-program",
            "--rsh-command",
            "--info-script",
            "--new-volume-script",
        ],
        flags_long: &["*"],
        permutes: true,
        remedy: WHOLE_REMEDY,
        ..BASE
    },
    Program {
        names: &["rsync", "scp", "sftp"],
        code: "eSo",
        code_long: &["--rsh", "--rsync-path"],
        flags_long: &["*"],
        permutes: true,
        remedy: WHOLE_REMEDY,
        ..BASE
    },
    Program {
        names: &["git"],
        code: "c",
        code_long: &["--upload-pack", "--receive-pack", "--exec", "--exec-path"],
        flags_long: &["*"],
        permutes: true,
        remedy: WHOLE_REMEDY,
        ..BASE
    },
    Program {
        names: &["nc", "ncat", "netcat", "socat"],
        code: "ec",
        code_long: &["--exec", "--sh-exec"],
        flags_long: &["*"],
        permutes: true,
        remedy: WHOLE_REMEDY,
        ..BASE
    },
    Program {
        names: &["split", "sort"],
        code_long: &["--filter", "--compress-program"],
        flags_long: &["*"],
        permutes: true,
        remedy: WHOLE_REMEDY,
        ..BASE
    },
    Program {
        names: &["hash"],
        code: "p",
        remedy: NAME_REMEDY,
        ..BASE
    },
    Program {
        names: &["env"],
        args: "uCP",
        code: "S",
        flags: "i0v",
        code_long: &["--split-string"],
        args_long: &[("--unset", 1), ("--chdir", 1)],
        flags_long: &["--ignore-environment", "--null", "--debug"],
        assigns: true,
        ..PREFIX
    },
    Program {
        names: &["sudo"],
        args: "ughpCrtTUDR",
        flags: "AbEHkKlnPSVv",
        args_long: &[
            ("--user", 1),
            ("--group", 1),
            ("--host", 1),
            ("--prompt", 1),
            ("--chdir", 1),
        ],
        flags_long: &[
            "--non-interactive",
            "--preserve-env",
            "--set-home",
            "--stdin",
            "--background",
        ],
        assigns: true,
        ..PREFIX
    },
    Program {
        names: &["doas"],
        args: "uC",
        flags: "nL",
        ..PREFIX
    },
    Program {
        names: &["nice"],
        args: "n",
        flags: "0123456789",
        args_long: &[("--adjustment", 1)],
        ..PREFIX
    },
    Program {
        names: &["ionice"],
        args: "cn",
        flags: "t0123456789",
        args_long: &[("--class", 1), ("--classdata", 1)],
        flags_long: &["--ignore"],
        ..PREFIX
    },
    Program {
        names: &["chrt", "taskset"],
        operands: &[Plain, Command],
        flags: "abdfiormRc0123456789",
        ..PREFIX
    },
    Program {
        names: &[
            "nohup",
            "setsid",
            "busybox",
            "toybox",
            "exec",
            "builtin",
            "tini",
            "dumb-init",
            "caffeinate",
            "unbuffer",
            "cgexec",
            "catchsegv",
            "fakeroot",
        ],
        flags: "cfwlgsp",
        ..PREFIX
    },
    Program {
        names: &["command"],
        flags: "p",
        ..PREFIX
    },
    Program {
        names: &["time"],
        args: "fo",
        flags: "pvaq",
        args_long: &[("--format", 1), ("--output", 1)],
        flags_long: &["--portability", "--verbose", "--append", "--quiet"],
        ..PREFIX
    },
    Program {
        names: &["stdbuf"],
        args: "ioe",
        args_long: &[("--input", 1), ("--output", 1), ("--error", 1)],
        ..PREFIX
    },
    Program {
        names: &["timeout"],
        args: "ks",
        flags: "vfp",
        args_long: &[("--kill-after", 1), ("--signal", 1)],
        flags_long: &["--preserve-status", "--foreground", "--verbose"],
        operands: &[Plain, Command],
        ..PREFIX
    },
    Program {
        names: &["flock"],
        args: "wE",
        code: "c",
        flags: "sxuneoF",
        args_long: &[("--wait", 1), ("--timeout", 1)],
        code_long: &["--command"],
        flags_long: &[
            "--shared",
            "--exclusive",
            "--nonblock",
            "--nb",
            "--unlock",
            "--close",
        ],
        operands: &[Plain, Command],
        ..PREFIX
    },
    Program {
        names: &[
            "chroot",
            "gosu",
            "su-exec",
            "setpriv",
            "chpst",
            "runcon",
            "unshare",
            "nsenter",
            "script",
            "firejail",
            "bwrap",
            "strace",
            "ltrace",
            "valgrind",
            "perf",
            "systemd-run",
            "numactl",
            "cpulimit",
            "setarch",
            "prlimit",
            "pkexec",
            "torsocks",
            "proxychains",
            "faketime",
            "s6-setuidgid",
            "start-stop-daemon",
        ],
        operands: &[Plain, Command],
        ..PREFIX
    },
    Program {
        names: &["xargs"],
        args: "adEILnPs",
        flags: "0oprtxeil",
        args_long: &[
            ("--arg-file", 1),
            ("--delimiter", 1),
            ("--max-args", 1),
            ("--max-procs", 1),
            ("--max-lines", 1),
            ("--replace", 0),
            ("--max-chars", 1),
        ],
        flags_long: &[
            "--null",
            "--no-run-if-empty",
            "--interactive",
            "--verbose",
            "--exit",
            "--open-tty",
        ],
        ..PREFIX
    },
];

/// Programs whose `--` begins a command inside what they reach, behind one of these words.
pub(super) const REMOTE: [&str; 6] = ["kubectl", "oc", "k", "k3s", "microk8s", "kubecolor"];
pub(super) const REMOTE_VERBS: [&str; 4] = ["exec", "run", "debug", "rsh"];

/// Programs that run a command inside a container, which begins somewhere behind such a word.
pub(super) const CONTAINERS: [&str; 12] = [
    "docker",
    "podman",
    "nerdctl",
    "crictl",
    "ctr",
    "lxc",
    "incus",
    "machinectl",
    "docker-compose",
    "distrobox",
    "toolbox",
    "vagrant",
];

/// Programs to whom the name of a program is a word like any other.
pub(super) const TEXT_TOOLS: [&str; 22] = [
    "echo",
    "grep",
    "egrep",
    "fgrep",
    "zgrep",
    "rg",
    "head",
    "tail",
    "wc",
    "uniq",
    "cut",
    "tr",
    "tee",
    "cat",
    "column",
    "pgrep",
    "pidof",
    "which",
    "ls",
    "systemctl",
    "journalctl",
    "ps",
];

/// Builtins whose words are names of variables, or assignments.
pub(super) const DECLARATIONS: [&str; 5] = ["export", "readonly", "local", "declare", "typeset"];

/// `find`'s options behind which a command begins.
pub(super) const FIND_COMMANDS: [&str; 4] = ["-exec", "-execdir", "-ok", "-okdir"];

/// Variables that a shell, the loader or a common program reads as code, a path to code, or
/// arithmetic.
const READ_BY_THE_SHELL: [&str; 74] = [
    "PATH",
    "IFS",
    "ENV",
    "PS0",
    "PS1",
    "PS2",
    "PS3",
    "PS4",
    "PROMPT_COMMAND",
    "SHELLOPTS",
    "BASHOPTS",
    "CDPATH",
    "GLOBIGNORE",
    "EXECIGNORE",
    "RANDOM",
    "SRANDOM",
    "SECONDS",
    "OPTIND",
    "LINENO",
    "HISTCMD",
    "HISTFILE",
    "EPOCHSECONDS",
    "TIMEFORMAT",
    "MAILPATH",
    "FUNCNEST",
    "TMOUT",
    "SHELL",
    "NODE_OPTIONS",
    "NODE_PATH",
    "JAVA_TOOL_OPTIONS",
    "_JAVA_OPTIONS",
    "MAKEFLAGS",
    "AWKPATH",
    "GIT_EXTERNAL_DIFF",
    "GIT_PAGER",
    "PAGER",
    "MANPAGER",
    "LESSOPEN",
    "LESSCLOSE",
    "EDITOR",
    "VISUAL",
    "KUBE_EDITOR",
    "KUBECTL_EXTERNAL_DIFF",
    "KUBECONFIG",
    "HOME",
    "XDG_CONFIG_HOME",
    "GCONV_PATH",
    "LOCPATH",
    "NLSPATH",
    "TERMINFO",
    "SSH_ASKPASS",
    "SUDO_ASKPASS",
    "SUDO_EDITOR",
    "FCEDIT",
    "VIMINIT",
    "EXINIT",
    "TAR_OPTIONS",
    "RSYNC_RSH",
    "PSQLRC",
    "PSQL_EDITOR",
    "PSQL_PAGER",
    "CURL_HOME",
    "PERLLIB",
    "PERLDB_OPTS",
    "GIT_ASKPASS",
    "GIT_EDITOR",
    "GIT_SEQUENCE_EDITOR",
    "GIT_PROXY_COMMAND",
    "GIT_EXEC_PATH",
    "GIT_DIR",
    "GIT_TEMPLATE_DIR",
    "HELM_PLUGINS",
    "HELM_POST_RENDERER",
    "JDK_JAVA_OPTIONS",
];

/// The beginnings of further such names.
const READ_BY_PROGRAMS: [&str; 10] = [
    "LD_",
    "DYLD_",
    "BASH_",
    "GIT_SSH",
    "GIT_CONFIG",
    "PYTHON",
    "PERL5",
    "RUBY",
    "npm_config_",
    "OPENSSL_",
];

pub(super) fn is_read_by_the_shell(variable: &str) -> bool {
    READ_BY_THE_SHELL.contains(&variable)
        || READ_BY_PROGRAMS
            .iter()
            .any(|beginning| variable.starts_with(beginning))
}

/// A listed program, by the name under which it was called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Listed {
    pub program: &'static Program,
    pub name: &'static str,
}

impl Listed {
    /// Whether any of its words is code or begins a command.
    pub fn reads_code(self) -> bool {
        !self.program.code.is_empty() || self.program.operands.iter().any(|operand| *operand != Plain)
    }
}

/// Whether `name` is that of a program that runs what it reads, or words made of it.
pub(super) fn may_run_input(name: &str) -> bool {
    matches!(name, "eval" | "xargs" | "." | "source")
        || find(name).is_some_and(|listed| listed.program.runs_input)
}

/// The program of a command's first word, by the last part of its path; the versions of
/// interpreters (`python3.12`) are ignored.
pub(super) fn find(word: &str) -> Option<Listed> {
    let name = word.rsplit('/').next().unwrap_or(word);
    let unversioned = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    let listed = |name: &str| {
        PROGRAMS.iter().find_map(|program| {
            let name = program.names.iter().find(|known| **known == name)?;
            Some(Listed { program, name })
        })
    };
    listed(name).or_else(|| listed(unversioned).filter(|listed| listed.program.runs_input))
}
