//! The settings of TLS. Their names and meanings are Redis's:
//! <https://redis.io/docs/latest/operate/oss_and_stack/management/security/encryption/>.

use std::path::PathBuf;
use std::sync::Arc;

use super::kind::{COUNT, Kind, PORT};
use super::table::{Change, Group, Setting};

const ROW: Setting = Setting {
    group: Group::Tls,
    ..Setting::DEFAULT
};

const fn text(name: &'static str, summary: &'static str) -> Setting {
    Setting { name, summary, ..ROW }
}

/// The rows of [`super::table`] about TLS, those that few need last.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        name: "tls-port",
        kind: PORT,
        default: "0",
        change: Change::AtStart,
        summary: "Port for Redis clients over TLS; 0 for none.",
        ..ROW
    },
    Setting {
        name: "grpc-tls-port",
        kind: PORT,
        default: "0",
        change: Change::AtStart,
        summary: "Port for gRPC clients over TLS; 0 for none.",
        ..ROW
    },
    Setting {
        name: "http-tls-port",
        kind: PORT,
        default: "0",
        change: Change::AtStart,
        summary: "Port for HTTP clients over TLS (metrics, probes, status); 0 for none.",
        ..ROW
    },
    text(
        "tls-cert-file",
        "File with the server's certificate and its chain (PEM).",
    ),
    text("tls-key-file", "File with the private key of the certificate (PEM)."),
    Setting {
        secret: true,
        ..text("tls-key-file-pass", "Passphrase of the private key.")
    },
    text(
        "tls-ca-cert-file",
        "File with the authorities that sign the certificates of clients (PEM).",
    ),
    text(
        "tls-ca-cert-dir",
        "Directory of such files, by the hashes of their names (openssl rehash).",
    ),
    Setting {
        kind: Kind::Choice(&["no", "yes", "optional"]),
        default: "yes",
        ..text("tls-auth-clients", "Whether clients need a certificate.")
    },
    Setting {
        kind: Kind::Choice(&["off", "CN"]),
        default: "off",
        ..text(
            "tls-auth-clients-user",
            "Whether a client has the user that its certificate names in this field, without a login (docs/security.md).",
        )
    },
    text(
        "tls-protocols",
        "Versions of TLS that are spoken: some of TLSv1, TLSv1.1, TLSv1.2 and TLSv1.3; by default the last two.",
    ),
    text(
        "tls-ciphers",
        "Ciphers of TLSv1.2 and older versions, in OpenSSL's format.",
    ),
    text("tls-ciphersuites", "Ciphers of TLSv1.3, in OpenSSL's format."),
    Setting {
        kind: Kind::YesNo,
        default: "no",
        ..text(
            "tls-prefer-server-ciphers",
            "Follow the server's order of ciphers, not the client's.",
        )
    },
    text(
        "tls-dh-params-file",
        "File with parameters for the Diffie-Hellman ciphers of TLSv1.2 (PEM).",
    ),
    Setting {
        kind: Kind::YesNo,
        default: "yes",
        ..text("tls-session-caching", "Let clients resume sessions.")
    },
    Setting {
        kind: COUNT,
        default: "20480",
        ..text(
            "tls-session-cache-size",
            "Number of sessions that are remembered for clients that keep none themselves; 0 for any.",
        )
    },
    Setting {
        kind: COUNT,
        default: "300",
        ..text(
            "tls-session-cache-timeout",
            "Seconds for which a session can be resumed; 0 for OpenSSL's default.",
        )
    },
    text(
        "tls-client-cert-file",
        "File with the certificate that --ping shows; by default the server's.",
    ),
    text(
        "tls-client-key-file",
        "File with the private key of that certificate (PEM).",
    ),
    Setting {
        secret: true,
        ..text("tls-client-key-file-pass", "Passphrase of that key.")
    },
];

/// Whether a setting is one of TLS that few need.
pub(super) fn is_rare(name: &str) -> bool {
    const USUAL: usize = 10;
    SETTINGS.iter().skip(USUAL).any(|setting| setting.name == name)
}

/// Whether clients need a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthClients {
    No,
    Yes,
    /// They may have one. It is checked then.
    Optional,
}

/// A certificate and its key.
pub struct Identity {
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub key_file_pass: Option<Arc<str>>,
}

/// The settings as they are read. Names of files are not checked.
pub struct TlsSettings {
    pub server: Identity,
    /// What `--ping` shows.
    pub client: Identity,
    pub ca_cert_file: Option<PathBuf>,
    pub ca_cert_dir: Option<PathBuf>,
    pub auth_clients: AuthClients,
    /// Empty for the default.
    pub protocols: Vec<String>,
    pub ciphers: Option<Arc<str>>,
    pub ciphersuites: Option<Arc<str>>,
    pub prefer_server_ciphers: bool,
    pub dh_params_file: Option<PathBuf>,
    pub session_caching: bool,
    pub session_cache_size: u64,
    /// Seconds.
    pub session_cache_timeout: u32,
}

impl TlsSettings {
    /// Reads them from the values of settings by name.
    pub(super) fn read(value: impl Fn(&str) -> Arc<str>) -> TlsSettings {
        let given = |name: &str| Some(value(name)).filter(|value| !value.is_empty());
        let file = |name: &str| given(name).map(|value| PathBuf::from(&*value));
        TlsSettings {
            server: Identity {
                cert_file: file("tls-cert-file"),
                key_file: file("tls-key-file"),
                key_file_pass: given("tls-key-file-pass"),
            },
            client: Identity {
                cert_file: file("tls-client-cert-file"),
                key_file: file("tls-client-key-file"),
                key_file_pass: given("tls-client-key-file-pass"),
            },
            ca_cert_file: file("tls-ca-cert-file"),
            ca_cert_dir: file("tls-ca-cert-dir"),
            auth_clients: match &*value("tls-auth-clients") {
                "no" => AuthClients::No,
                "optional" => AuthClients::Optional,
                _ => AuthClients::Yes,
            },
            protocols: value("tls-protocols").split_whitespace().map(str::to_owned).collect(),
            ciphers: given("tls-ciphers"),
            ciphersuites: given("tls-ciphersuites"),
            prefer_server_ciphers: *value("tls-prefer-server-ciphers") == *"yes",
            dh_params_file: file("tls-dh-params-file"),
            session_caching: *value("tls-session-caching") == *"yes",
            session_cache_size: value("tls-session-cache-size").parse().unwrap_or(0),
            session_cache_timeout: value("tls-session-cache-timeout").parse().unwrap_or(0),
        }
    }
}
