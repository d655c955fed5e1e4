//! What a module's return values mean.

use cryptoki::error::{Error, RvError};

use crate::keys::KeyError;

/// What to do about a failure besides reporting it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Nothing helps.
    None,
    /// A new session, logged in again, may do.
    NewSession,
}

/// A failed call, in words and by its class.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) error: KeyError,
    pub(super) remedy: Remedy,
    /// Tokens say this both of a wrapped key that does not authenticate and of
    /// their own failures.
    pub(super) ambiguous: bool,
}

impl Fault {
    /// A failure that no module reported.
    pub(super) fn of(error: KeyError) -> Self {
        Self {
            error,
            remedy: Remedy::None,
            ambiguous: false,
        }
    }

    /// What `error` says about `key`.
    pub(super) fn from_module(error: &Error, key: &str) -> Self {
        let detail = detail(error);
        let key = key.to_owned();
        let Error::Pkcs11(code, _) = error else {
            return Self::of(KeyError::Malformed { key, detail });
        };
        use RvError as R;
        let remedy = match code {
            R::SessionHandleInvalid
            | R::SessionClosed
            | R::UserNotLoggedIn
            | R::CryptokiNotInitialized
            | R::DeviceRemoved
            | R::DeviceError
            | R::DeviceMemory
            | R::TokenNotPresent
            | R::TokenNotRecognized
            | R::SlotIdInvalid => Remedy::NewSession,
            _ => Remedy::None,
        };
        let error = match code {
            R::PinIncorrect
            | R::PinInvalid
            | R::PinLenRange
            | R::PinExpired
            | R::PinLocked
            | R::UserNotLoggedIn
            | R::UserPinNotInitialized
            | R::UserAnotherAlreadyLoggedIn
            | R::ActionProhibited
            | R::FunctionRejected => KeyError::Denied { key, detail },
            R::KeyHandleInvalid
            | R::ObjectHandleInvalid
            | R::WrappingKeyHandleInvalid
            | R::UnwrappingKeyHandleInvalid => KeyError::NotFound { key, detail },
            R::KeyFunctionNotPermitted => KeyError::Disabled { key, detail },
            R::EncryptedDataInvalid
            | R::EncryptedDataLenRange
            | R::SignatureInvalid
            | R::WrappedKeyInvalid
            | R::WrappedKeyLenRange => KeyError::Rejected { key, detail },
            R::MechanismInvalid
            | R::MechanismParamInvalid
            | R::FunctionNotSupported
            | R::KeyTypeInconsistent
            | R::KeySizeRange
            | R::WrappingKeyTypeInconsistent
            | R::UnwrappingKeyTypeInconsistent => KeyError::Configuration {
                detail: format!("the token cannot wrap with key {key}: {detail}"),
                hint: Some(
                    "the key must be an AES key that may encrypt and decrypt (CKM_AES_GCM), \
                     or wrap and unwrap (mechanism=aes-key-wrap)"
                        .into(),
                ),
            },
            R::GeneralError
            | R::FunctionFailed
            | R::HostMemory
            | R::SessionCount
            | R::OperationActive
            | R::CantLock => KeyError::Unavailable { key, detail },
            _ if remedy == Remedy::NewSession => KeyError::Unavailable { key, detail },
            _ => KeyError::Malformed { key, detail },
        };
        Self {
            error,
            remedy,
            ambiguous: matches!(code, R::GeneralError | R::FunctionFailed),
        }
    }
}

/// The code and the function, without the long explanations.
fn detail(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("{code:?} from C_{function:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptoki::context::Function;

    fn fault(code: RvError) -> Fault {
        Fault::from_module(&Error::Pkcs11(code, Function::Decrypt), "k")
    }

    #[test]
    fn codes_have_their_classes() {
        assert!(matches!(
            fault(RvError::PinIncorrect).error,
            KeyError::Denied { .. }
        ));
        let gone = fault(RvError::DeviceRemoved);
        assert!(gone.error.is_transient() && gone.remedy == Remedy::NewSession);
        let general = fault(RvError::GeneralError);
        assert!(general.ambiguous && general.error.is_transient());
        assert!(matches!(
            fault(RvError::KeyHandleInvalid).error,
            KeyError::NotFound { .. }
        ));
        assert!(matches!(
            fault(RvError::KeyFunctionNotPermitted).error,
            KeyError::Disabled { .. }
        ));
        let text = fault(RvError::VendorDefined(7)).error.to_string();
        assert!(text.contains("VendorDefined(7) from C_Decrypt"), "{text}");
    }
}
