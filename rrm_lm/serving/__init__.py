"""`rrm-lm serve`: reward models at the addresses that other projects' clients use. It needs the extra `serve`.

    rrm-lm serve --model outputs/mine --port 8080
    curl http://127.0.0.1:8080/v1/rewards -H 'Content-Type: application/json' \\
        -d '{"items": [{"prompt": "Hi", "responses": ["Hello!", "What?"]}]}'

The client's text is scored with the tokens of training (:mod:`rrm_lm.text.rendered`), in batches with the responses of
other requests (:mod:`rrm_lm.serving.queue`). Every dialect has a prefix, because their paths collide:

==============  ======================================  ========================================================
client          its setting                             tested with
==============  ======================================  ========================================================
own             ``/v1/rewards``                         httpx2, `rrm_lm.reward_function`
vLLM            ``http://HOST:PORT/vllm``               requests built from vllm/entrypoints/pooling at dff4cad
                (``/classify``, ``/pooling``)
SGLang          ``http://HOST:PORT/sglang``             OpenAI's client (``/v1/embeddings``); ``/classify`` with
                                                        requests built from sglang 0.5.23
verl            ``reward_router_address`` HOST:PORT/verl  the unmodified worker of verl 0.9.1, both engines
TEI             ``http://HOST:PORT/tei/predict``        huggingface_hub's InferenceClient; lists with requests
                                                        built from router/src/http/types.rs at 02506d0
OpenRLHF        ``--reward.remote_url``                 the unmodified client of openrlhf 0.11.2
                http://HOST:PORT/openrlhf
LLaMA-Factory   ``reward_model``                        the unmodified client of llamafactory 0.9.5
                http://HOST:PORT/llamafactory
operation       ``/health``, ``/v1/models``,            httpx2
                ``/metrics``
==============  ======================================  ========================================================

- ``?model=NAME`` in the URL names the model for clients that name none. ``http://any:TOKEN@HOST:PORT`` carries the
  token for clients without a setting for keys; the others send it as Bearer.
- A response that fails is an error in its place; clients that read bare numbers get status 422 with all places.
- vLLM's, SGLang's and TEI's dialects refuse text that is too long unless asked to cut it; the others cut it and say so.
- In rendered text, special tokens are control tokens, since the client has mixed both. Send messages if prompts are not
  trusted: their text is always text.
- A reward model with criteria needs messages: those in rendered text are read back, and text that renders differently
  again (tools, another date) is an error in its place. Models that write a critique first are not served.
- In sampled text, the space at the start of a response looks like the space of Mistral's template.
"""
