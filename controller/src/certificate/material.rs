//! What is in the Secret, and when it is to be replaced.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::OffsetDateTime;

/// An authority outlives many serving certificates.
const AUTHORITY_TIMES: u32 = 20;
/// Clocks of nodes differ.
const BACKDATED: Duration = Duration::from_secs(3600);
/// `notBefore` and `notAfter` are whole seconds.
const KEYS: [&str; 6] = ["authorities.crt", "ca.crt", "ca.key", "tls.crt", "tls.key", "validity"];

/// Why a certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// The library's reason.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// A date outside what certificates can say.
    #[error("a certificate cannot be valid until {0} s after 1970; choose a shorter validity")]
    Date(i64),
}

/// When the parts end, in seconds of unix time, and the names that the certificate is good for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Validity {
    /// End of the authority.
    pub authority_until: i64,
    /// Begin of the serving certificate.
    pub serving_from: i64,
    /// End of the serving certificate.
    pub serving_until: i64,
    /// Names and addresses in it.
    pub names: Vec<String>,
}

/// An authority, the ones to be trusted, and a serving certificate. PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// Every authority to be trusted, the newest first.
    pub authorities: String,
    authority: String,
    authority_key: String,
    /// The serving certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// When to replace what.
    pub validity: Validity,
}

impl std::fmt::Debug for Material {
    // Keys do not belong into logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").field("validity", &self.validity).finish_non_exhaustive()
    }
}

impl Material {
    /// What is due at `now`, given what there is: nothing (`None`), a new serving certificate, or a new
    /// authority as well.
    ///
    /// # Errors
    /// The library's.
    pub fn renewed(
        old: Option<&Material>,
        names: &[String],
        validity: Duration,
        now: i64,
    ) -> Result<Option<Material>, MaterialError> {
        let Some(old) = old else { return Material::made(names, validity, now, None).map(Some) };
        let had = &old.validity;
        let length = had.serving_until.saturating_sub(had.serving_from).max(1);
        let due = now >= had.serving_until - length / 3 || had.names != names;
        if !due {
            return Ok(None);
        }
        let end = now.saturating_add(seconds(validity));
        match KeyPair::from_pem(&old.authority_key) {
            Ok(key) if had.authority_until > end => old.reissued(&key, names, validity, now),
            _ => Material::made(names, validity, now, Some(old)),
        }
        .map(Some)
    }

    /// A new authority; the one before stays trusted.
    fn made(
        names: &[String],
        validity: Duration,
        now: i64,
        before: Option<&Material>,
    ) -> Result<Material, MaterialError> {
        let authority_until = now.saturating_add(seconds(validity * AUTHORITY_TIMES));
        let key = KeyPair::generate()?;
        let authority = authority_parameters(now, authority_until)?.self_signed(&key)?.pem();
        let trusted = before.map_or("", |m| m.authority.as_str());
        let material = Material {
            authorities: format!("{authority}{trusted}"),
            authority,
            authority_key: key.serialize_pem(),
            certificate: String::new(),
            key: String::new(),
            validity: Validity {
                authority_until,
                serving_from: 0,
                serving_until: 0,
                names: Vec::new(),
            },
        };
        material.reissued(&key, names, validity, now)
    }

    fn reissued(
        &self,
        authority_key: &KeyPair,
        names: &[String],
        validity: Duration,
        now: i64,
    ) -> Result<Material, MaterialError> {
        let until = now.saturating_add(seconds(validity));
        // The issuer's name and key are all that a signature needs of it.
        let issuer =
            Issuer::new(authority_parameters(now, self.validity.authority_until)?, authority_key);
        let mut parameters = CertificateParams::new(names.to_vec())?;
        parameters.distinguished_name.push(DnType::CommonName, "bowline-controller");
        parameters.not_before = date(now - seconds(BACKDATED))?;
        parameters.not_after = date(until)?;
        parameters.use_authority_key_identifier_extension = true;
        parameters.key_usages.push(KeyUsagePurpose::DigitalSignature);
        parameters.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &issuer)?.pem();
        let validity = Validity {
            serving_from: now,
            serving_until: until,
            names: names.to_vec(),
            ..self.validity.clone()
        };
        Ok(Material { certificate, key: key.serialize_pem(), validity, ..self.clone() })
    }

    /// As data of a Secret.
    #[must_use]
    pub fn to_data(&self) -> BTreeMap<String, ByteString> {
        // A struct of numbers and strings is always JSON.
        let validity = serde_json::to_string(&self.validity).unwrap_or_default();
        let parts = [
            &self.authorities,
            &self.authority,
            &self.authority_key,
            &self.certificate,
            &self.key,
            &validity,
        ];
        let bytes = parts.into_iter().map(|p| ByteString(p.clone().into_bytes()));
        KEYS.iter().map(|k| (*k).to_string()).zip(bytes).collect()
    }

    /// From data of a Secret; `None` where a part is missing or no text: it is made anew.
    #[must_use]
    pub fn from_data(data: &BTreeMap<String, ByteString>) -> Option<Material> {
        let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
        let [authorities, authority, authority_key, certificate, key, validity] = KEYS.map(text);
        Some(Material {
            authorities: authorities?,
            authority: authority?,
            authority_key: authority_key?,
            certificate: certificate?,
            key: key?,
            validity: serde_json::from_str(&validity?).ok()?,
        })
    }
}

fn authority_parameters(now: i64, until: i64) -> Result<CertificateParams, MaterialError> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.distinguished_name.push(DnType::CommonName, "bowline-webhook-authority");
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.not_before = date(now - seconds(BACKDATED))?;
    parameters.not_after = date(until)?;
    Ok(parameters)
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn date(unix: i64) -> Result<OffsetDateTime, MaterialError> {
    OffsetDateTime::from_unix_timestamp(unix).map_err(|_| MaterialError::Date(unix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const NOW: i64 = 1_800_000_000;

    fn names() -> Vec<String> {
        vec!["bowline-controller.bowline-system.svc".into()]
    }

    fn first() -> Material {
        Material::renewed(None, &names(), DAY, NOW).unwrap().unwrap()
    }

    #[test]
    fn a_fresh_certificate_stays_and_survives_the_secret() {
        let material = first();
        let read = Material::from_data(&material.to_data()).unwrap();
        assert_eq!(read, material);
        assert_eq!(Material::renewed(Some(&read), &names(), DAY, NOW + 3600).unwrap(), None);
    }

    #[test]
    fn with_a_third_left_the_certificate_is_replaced_and_the_authority_kept() {
        let old = first();
        let later = NOW + 86_400 * 2 / 3;
        let new = Material::renewed(Some(&old), &names(), DAY, later).unwrap().unwrap();
        assert_ne!(new.certificate, old.certificate);
        assert_eq!(new.authorities, old.authorities);
        assert_eq!(new.validity.serving_until, later + 86_400);
    }

    #[test]
    fn an_authority_near_its_end_is_replaced_and_stays_trusted() {
        let old = first();
        let later = NOW + 86_400 * 20 - 3600;
        let new = Material::renewed(Some(&old), &names(), DAY, later).unwrap().unwrap();
        assert!(new.authorities.ends_with(&old.authorities), "the old one is still trusted");
        assert!(new.authorities.len() > old.authorities.len());
    }

    #[test]
    fn another_name_needs_another_certificate() {
        let more = vec!["127.0.0.1".to_string()];
        let new = Material::renewed(Some(&first()), &more, DAY, NOW).unwrap().unwrap();
        assert_eq!(new.validity.names, more);
    }

    #[test]
    fn a_damaged_secret_is_no_material() {
        let mut data = first().to_data();
        data.remove("tls.key");
        assert_eq!(Material::from_data(&data), None);
    }
}
