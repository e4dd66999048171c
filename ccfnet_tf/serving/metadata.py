"""Returns a model's signatures in TensorFlow Serving's metadata format."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2

from ccfnet_tf.serving.model import Model

FIELD = "signature_def"


def metadata(model: Model) -> Any:
    """Returns the signatures as a `GetModelMetadataResponse`."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = model.name
    response.model_spec.version.value = model.version
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in model.signatures.items():
        signatures.signature_def[name].CopyFrom(signature)
    response.metadata[FIELD].Pack(signatures)
    return response


def metadata_json(model: Model) -> bytes:
    """Returns the response of `metadata` as JSON."""
    text = json_format.MessageToJson(metadata(model), preserving_proto_field_name=True)
    return text.encode("utf-8")
