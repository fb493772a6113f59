//! Settings that name a file, or a credential that the service manager keeps for this process alone.
//!
//! Pure code: whoever needs the file reads it.

use std::path::{Path, PathBuf};

use super::settings::Section;

/// What a path begins with that names a credential.
const CREDENTIAL: &str = "credential:";

impl Section {
    /// A file; `credential:NAME` is one that the service manager passed on (systemd's LoadCredential=).
    pub(super) fn file(&mut self, key: &'static str) -> Option<PathBuf> {
        let credentials = self.credentials.clone();
        self.hidden(key, |text| path_of(text, credentials.as_deref()))
    }

    /// Several files; each as [`Section::file`] reads one.
    pub(super) fn files(&mut self, key: &'static str) -> Vec<PathBuf> {
        let credentials = self.credentials.clone();
        self.list(key, |text| path_of(text, credentials.as_deref())).unwrap_or_default()
    }
}

fn path_of(text: &str, credentials: Option<&Path>) -> Result<PathBuf, String> {
    match (text.strip_prefix(CREDENTIAL), credentials) {
        (None, _) if text.is_empty() => Err("it must name a file".to_owned()),
        (None, _) => Ok(PathBuf::from(text)),
        (Some(name), _) if name.is_empty() || name.contains('/') => {
            Err("it must name a credential, such as \"credential:tokens.toml\"".to_owned())
        }
        (Some(name), Some(folder)) => Ok(folder.join(name)),
        (Some(_), None) => Err("there are no credentials (CREDENTIALS_DIRECTORY is not set)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_a_name_in_the_folder_of_the_service_manager_and_nowhere_else() {
        let folder = Path::new("/run/credentials/x");
        assert_eq!(path_of("credential:a.toml", Some(folder)), Ok(folder.join("a.toml")));
        assert_eq!(path_of("/etc/a.toml", Some(folder)), Ok(PathBuf::from("/etc/a.toml")));
        for (text, folder) in [
            ("", None),
            ("credential:", Some(folder)),
            ("credential:../a", Some(folder)),
            ("credential:a", None),
        ] {
            assert!(path_of(text, folder).is_err(), "{text}");
        }
    }
}
