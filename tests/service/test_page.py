"""The page: nothing but what stands in it may run, nothing is fetched from elsewhere, and it knows what it shows."""

import base64
import hashlib
import re

from serving import chain, png, service

import medfedpure
from medfedpure.service.page import page
from medfedpure.service.schema import ABOUT


def test_nothing_comes_from_elsewhere(service):
    answer = service.client.get("/")
    text, policy = answer.text, answer.headers["content-security-policy"]
    assert (text, policy) == page()
    assert not re.findall(r"https?:|//[a-z]|@import|url\(|\bsrc=|<link(?! rel=\"icon\" href=\"data:,\")", text)
    assert not re.findall(r"\bstyle=|\bon[a-z]+=|javascript:|eval\(|innerHTML", text)
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (block,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_it_says_what_a_verdict_may_not_be_used_for():
    text = " ".join(page()[0].split())
    assert "Research software, no medical device." in text
    assert "may not be used for a diagnosis" in text
    assert "no medical device" in ABOUT


def test_it_reads_what_the_service_says(service):
    asked = re.search(r'fetch\("([^"]+)"', page()[0])[1]
    row = service.client.post(f"/{asked}", files={"file": png(0)}).json()
    used = set(re.findall(r"\brow\.(\w+)", page()[0])) - {"error"}
    assert used <= row.keys(), "the page shows what no row has"
    assert set(re.findall(r'at\("(\w+)"\)', page()[0])) <= set(re.findall(r'id="(\w+)"', page()[0]))


def test_the_description_names_every_answer_with_an_example(service):
    found = service.client.get("/openapi.json").json()
    assert found["info"]["version"] == medfedpure.__version__
    assert {"/health", "/ready", "/metrics", "/v1/verdict", "/v1/verdicts"} == found["paths"].keys()
    for path in ("/v1/verdict", "/v1/verdicts"):
        route = found["paths"][path]["post"]
        assert {"400", "401", "403", "408", "413", "415", "422", "429", "500", "503"} < route["responses"].keys()
        assert "multipart/form-data" in route["requestBody"]["content"]
        assert route["security"]


def example(service, path, method, status="200"):
    answer = service.client.get("/openapi.json").json()["paths"][path][method]["responses"][status]
    return answer["content"]["application/json"]["example"]


def test_the_examples_hold_what_is_answered(service):
    row = service.client.post("/v1/verdict", files={"file": png(0)}).json()
    assert list(example(service, "/v1/verdict", "post")) == list(row)
    files = [("files", png(0)), ("files", b"no picture")]
    said = service.client.post("/v1/verdicts", files=files).json()
    described = example(service, "/v1/verdicts", "post")
    assert list(described) == list(said)
    assert [list(one) for one in described["rows"]] == [list(one) for one in said["rows"]]
    assert [value is None for value in described["rows"][1].values()] == [
        value is None for value in said["rows"][1].values()
    ]
    assert list(example(service, "/ready", "get")) == list(service.client.get("/ready").json())
    assert list(example(service, "/v1/verdict", "post", "415")) == ["error"]


def test_every_kind_of_answer_that_is_described_is_given(service):
    described = service.client.get("/openapi.json").json()["paths"]
    for path in ("/health", "/ready", "/metrics"):
        content = described[path]["get"]["responses"]["200"]["content"]
        assert service.client.get(path).headers["content-type"].partition(";")[0] in content
    for kind in described["/v1/verdict"]["post"]["requestBody"]["content"]:
        if kind != "multipart/form-data":
            sent = {"content-type": kind.replace("*", "webp")}
            assert service.client.post("/v1/verdict", content=png(0), headers=sent).status_code == 200, kind
