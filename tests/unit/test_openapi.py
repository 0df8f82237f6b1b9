"""The documents derived from declarations: whole, valid, and as stored in docs/."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema_rs
import pytest
from tiny import SERVICE, Tiny

from nubila.apps import documents, wiring
from nubila.core.service import Service
from nubila.edge import openapi, reference

PUBLIC = [s for s in wiring.services() if s.type]
named = pytest.mark.parametrize("service", [*PUBLIC, SERVICE], ids=lambda s: s.name)


@named
def test_every_operation_is_described(service: Service) -> None:
    document = openapi.document(service)
    assert document["openapi"] == "3.1.0"
    described = {(m, re.sub(r"\{[^}]*\}", "{}", p)) for p, ms in document["paths"].items() for m in ms}
    wanted = {(o.route.method.lower(), o.key[1]) for o in openapi.operations(service, openapi.newest(service))}
    assert described == wanted
    json.dumps(document)


@named
def test_paths_and_parameters_agree(service: Service) -> None:
    shapes = set()
    for path, methods in openapi.document(service)["paths"].items():
        shape = re.sub(r"\{[^}]*\}", "{}", path)
        assert shape not in shapes, f"{path} is there twice"
        shapes.add(shape)
        for operation in methods.values():
            said = [p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"]
            assert said == re.findall(r"\{(\w+)\}", path)
            names = [(p["name"], p["in"]) for p in operation.get("parameters", ())]
            assert len(names) == len(set(names)), f"{path}: a parameter is there twice"


@named
def test_every_schema_compiles(service: Service) -> None:
    document = openapi.document(service)

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("schema"), dict) and "$ref" not in json.dumps(value["schema"]):
                jsonschema_rs.Draft202012Validator(value["schema"])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document["paths"])
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.Draft202012Validator(schema)


def test_document_follows_the_version(tmp_path: Any) -> None:
    tiny = Tiny(tmp_path)
    try:
        old = tiny.request("GET", "/openapi.json", version="1.4", token="").json
        new = tiny.request("GET", "/openapi.json", token="").json
    finally:
        tiny.close()
    assert old["info"]["version"] == "1.4"
    assert new["info"]["version"] == "1.9"
    assert "/v1/new" in new["paths"]
    assert "/v1/new" not in old["paths"]
    assert "late" in new["components"]["schemas"]["tiny_thing"]["properties"]
    assert "late" not in old["components"]["schemas"]["tiny_thing"]["properties"]


def test_answers_are_as_the_document_says(tmp_path: Any) -> None:
    tiny = Tiny(tmp_path)
    try:
        tiny.thing(shared="no", token="p1:admin")
        rows = tiny.request("GET", "/v1/things", version="1.9").json["things"]
    finally:
        tiny.close()
    schema = openapi.document(SERVICE)["components"]["schemas"]["tiny_thing"]
    validator = jsonschema_rs.Draft202012Validator({**schema, "additionalProperties": False})
    for row in rows:
        validator.validate(row)


def test_create_body_is_what_the_checks_take() -> None:
    post = openapi.document(SERVICE)["paths"]["/v1/things"]["post"]
    one, many = post["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert one["required"] == ["thing"]
    assert many["properties"]["things"]["items"] == one["properties"]["thing"]
    assert post["x-policy"] == ["tiny:create"]
    assert set(post["responses"]) >= {"201", "400", "401", "403", "409", "413", "415"}


def test_nothing_lacks_its_sentence() -> None:
    assert reference.missing(PUBLIC) == []


def test_documents_are_up_to_date() -> None:
    assert documents.stale() == [], "run: python -m nubila.apps.documents"


def test_stale_pages_are_written_and_old_ones_removed(tmp_path: Any) -> None:
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "gone.md").write_text("old")
    assert "reference/gone.md" in documents.stale(tmp_path)
    documents.write(tmp_path)
    assert documents.stale(tmp_path) == []
    assert not (tmp_path / "reference" / "gone.md").exists()
    assert "tiny:list" in reference.policy_sample([SERVICE])
