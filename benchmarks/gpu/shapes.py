"""The models whose shapes are timed."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelShape:
    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    qk_norm: bool

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """name -> (rows, columns) of each weight; gate_up's rows are those of both halves."""
        return {
            "qkv": (self.qkv, self.hidden),
            "o": (self.hidden, self.heads * self.head_dim),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
            "head": (self.vocab, self.hidden),
        }

    def config(self, num_layers: int) -> dict[str, object]:
        """Fields of a Hugging Face config.json, with another number of layers."""
        return {
            "architectures": ["Qwen3ForCausalLM" if self.qk_norm else "LlamaForCausalLM"],
            "model_type": "qwen3" if self.qk_norm else "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": num_layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": 40960,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "tie_word_embeddings": self.hidden < 2048,
            "torch_dtype": "bfloat16",
        }


QWEN3_0_6B = ModelShape("0.6B", 1024, 3072, 28, 16, 8, 128, 151936, True)
QWEN3_8B = ModelShape("Q8B", 4096, 12288, 36, 32, 8, 128, 151936, True)
LLAMA_3_1_8B = ModelShape("L8B", 4096, 14336, 32, 32, 8, 128, 128256, False)
MODELS = (QWEN3_0_6B, QWEN3_8B, LLAMA_3_1_8B)
