// The contract, called as a Go program calls it. LLM_GRPC_ADDRESS is a server's with the embedded model under
// the names "embedded" (the default) and "second", as tests/clients/test_go_client.py starts it;
// LLM_GRPC_ADMIN_ADDRESS is its admin port.
package llmgrpc_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	llm "github.com/llm-grpc/llm-grpc/clients/go/llmgrpcv1"
)

const prompt = "Translate to French: the black cat"

func connect(t *testing.T, variable string) *grpc.ClientConn {
	t.Helper()
	address := os.Getenv(variable)
	if address == "" {
		t.Skip(variable + " is not set")
	}
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	t.Cleanup(func() { check(t, connection.Close()) })
	return connection
}

func service(t *testing.T) (context.Context, llm.LLMServiceClient) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx, llm.NewLLMServiceClient(connect(t, "LLM_GRPC_ADDRESS"))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, holds bool, found any) {
	t.Helper()
	if !holds {
		t.Fatalf("found %v", found)
	}
}

// all reads a stream to its end.
func all[M any](t *testing.T, stream grpc.ServerStreamingClient[M]) (messages []*M) {
	t.Helper()
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return messages
		}
		check(t, err)
		messages = append(messages, message)
	}
}

// refused checks a status and the reason of its ErrorInfo, and returns the fields that it blames.
func refused(t *testing.T, err error, code codes.Code, reason string) []string {
	t.Helper()
	found := status.Convert(err)
	var reasons, fields []string
	for _, detail := range found.Details() {
		switch each := detail.(type) {
		case *errdetails.ErrorInfo:
			reasons = append(reasons, each.Reason)
		case *errdetails.BadRequest:
			for _, violation := range each.FieldViolations {
				fields = append(fields, violation.Field)
			}
		}
	}
	if found.Code() != code || !slices.Equal(reasons, []string{reason}) {
		t.Fatalf("found %v %v: %s", found.Code(), reasons, found.Message())
	}
	return fields
}

func TestSampling(t *testing.T) {
	ctx, client := service(t)
	answer, err := client.GenerateText(ctx, &llm.GenerateTextRequest{
		Prompt: prompt, MaxTokens: 8,
		Sampling: &llm.Sampling{
			Temperature: proto.Float32(1.5), Seed: proto.Uint64(7), N: proto.Int32(3), MinP: proto.Float32(0.01),
			TypicalP: proto.Float32(0.99), RepetitionPenalty: proto.Float32(1.1),
			PresencePenalty: proto.Float32(0.1), FrequencyPenalty: proto.Float32(0.1),
			LogitBias: map[int32]float32{5: -1},
		},
		Stopping: &llm.Stopping{MinTokens: 2},
	})
	check(t, err)
	expect(t, len(answer.Sequences) == 3, answer)
	for index, sequence := range answer.Sequences {
		expect(t, int(sequence.Index) == index && sequence.Seed == 7+uint64(index), sequence)
		expect(t, sequence.Usage.CompletionTokens >= 2, sequence)
	}
	expect(t, answer.GeneratedText == answer.Sequences[0].GeneratedText && answer.Seed == 7, answer)

	plain, err := client.GenerateText(ctx, &llm.GenerateTextRequest{Prompt: prompt})
	check(t, err)
	expect(t, plain.FinishReason == llm.FinishReason_FINISH_REASON_EOS && plain.Seed == 0, plain)
	_, isToken := plain.StopMatch.(*llm.GenerateTextResponse_StopTokenId)
	expect(t, isToken, plain)
	word := strings.Fields(plain.GeneratedText)[1]
	stopped, err := client.GenerateText(ctx, &llm.GenerateTextRequest{
		Prompt: prompt, Stopping: &llm.Stopping{StopStrings: []string{word}, IncludeStop: true},
	})
	check(t, err)
	expect(t, stopped.GetStopString() == word && strings.HasSuffix(stopped.GeneratedText, word), stopped)
	expect(t, stopped.FinishReason == llm.FinishReason_FINISH_REASON_STOP, stopped)
}

func TestTokensThatMayComeOrEnd(t *testing.T) {
	ctx, client := service(t)
	allowed, banned := []int32{20, 21, 22}, []int32{21}
	answer, err := client.GenerateText(ctx, &llm.GenerateTextRequest{
		PromptTokenIds: []int32{5, 6, 7}, MaxTokens: 9, Temperature: 1,
		Sampling: &llm.Sampling{
			TopP: proto.Float32(0.9), TopK: proto.Int32(2), AllowedTokenIds: allowed, BannedTokenIds: banned,
		},
		Stopping:        &llm.Stopping{IgnoreEos: true},
		ResponseOptions: &llm.ResponseOptions{Tokens: true},
	})
	check(t, err)
	expect(t, answer.FinishReason == llm.FinishReason_FINISH_REASON_LENGTH && answer.Seed != 0, answer)
	expect(t, answer.Usage.PromptTokens == 3 && len(answer.Tokens) == 9, answer)
	for _, token := range answer.Tokens {
		expect(t, slices.Contains(allowed, token.Id) && !slices.Contains(banned, token.Id), token)
		expect(t, token.Logprob == nil && token.Text == nil, token)
	}
	end := answer.Tokens[0].Id
	answer, err = client.GenerateText(ctx, &llm.GenerateTextRequest{
		PromptTokenIds: []int32{5, 6, 7}, Sampling: &llm.Sampling{AllowedTokenIds: []int32{end}},
		Stopping: &llm.Stopping{StopTokenIds: []int32{end}, IgnoreEos: true},
	})
	check(t, err)
	expect(t, answer.FinishReason == llm.FinishReason_FINISH_REASON_STOP, answer)
	expect(t, answer.GetStopTokenId() == end && answer.GeneratedText == "", answer)
	model, err := llm.NewModelServiceClient(connect(t, "LLM_GRPC_ADDRESS")).GetModel(ctx, &llm.GetModelRequest{})
	check(t, err)
	full := make([]int32, model.Model.Limits.MaxPromptTokens)
	answer, err = client.GenerateText(ctx, &llm.GenerateTextRequest{PromptTokenIds: full, MaxTokens: 2})
	check(t, err)
	expect(t, answer.FinishReason == llm.FinishReason_FINISH_REASON_CONTEXT_LIMIT, answer)
	_, err = client.GenerateText(ctx, &llm.GenerateTextRequest{PromptTokenIds: append(full, 0)})
	refused(t, err, codes.InvalidArgument, "PROMPT_TOO_LONG")
}

func TestCacheAndTruncation(t *testing.T) {
	ctx, client := service(t)
	request := &llm.GenerateTextRequest{Prompt: prompt, MaxTokens: 1, Cache: &llm.Cache{Salt: "go"}}
	for _, cached := range []bool{false, true} {
		answer, err := client.GenerateText(ctx, request)
		check(t, err)
		expect(t, (answer.Usage.CachedTokens > 0) == cached, answer.Usage)
	}
	request.Cache.Disabled, request.TruncatePromptTokens = true, 3
	request.ResponseOptions = &llm.ResponseOptions{Logprobs: true, PromptTokens: true, PromptTopLogprobs: 2}
	answer, err := client.GenerateText(ctx, request)
	check(t, err)
	expect(t, answer.Usage.PromptTokens == 3 && answer.Usage.CachedTokens == 0, answer.Usage)
	expect(t, answer.PromptInfo.TruncatedTokens > 0 && answer.PromptInfo.Text == "", answer.PromptInfo)
	expect(t, len(answer.PromptInfo.Tokens[1].TopLogprobs) == 2, answer.PromptInfo)
	expect(t, answer.Tokens[0].Logprob != nil && answer.Receipt == nil && answer.Timing == nil, answer)
}

func TestStreamEqualsUnary(t *testing.T) {
	ctx, client := service(t)
	request := &llm.GenerateTextRequest{
		Prompt: prompt, MaxTokens: 12,
		Sampling: &llm.Sampling{Temperature: proto.Float32(1), Seed: proto.Uint64(3), N: proto.Int32(2)},
	}
	answer, err := client.GenerateText(ctx, request)
	check(t, err)
	stream, err := client.StreamGenerateText(ctx, request)
	check(t, err)
	texts := make([]string, 2)
	for number, message := range all(t, stream) {
		expect(t, int(message.Sequence) == number, message)
		texts[message.Index] += message.GeneratedText
	}
	for index, text := range texts {
		expect(t, text == answer.Sequences[index].GeneratedText, texts)
	}
}

func TestToldBack(t *testing.T) {
	ctx, client := service(t)
	answer, err := client.GenerateText(ctx, &llm.GenerateTextRequest{
		Prompt: prompt, RequestId: "told-back",
		ResponseOptions: &llm.ResponseOptions{
			TopLogprobs: 3, TokenText: true, PromptLogprobs: true, Echo: true, Timing: true, Receipt: true,
		},
	})
	check(t, err)
	var text []byte
	for _, token := range answer.Tokens {
		expect(t, int(token.TextOffset) == len(text), token)
		expect(t, len(token.TopLogprobs) == 3 && token.GetLogprob() <= token.TopLogprobs[0].Logprob, token)
		text = append(text, token.Text...)
	}
	expect(t, bytes.Equal(text, []byte(answer.GeneratedText)), answer)
	expect(t, answer.PromptInfo.Text == prompt, answer.PromptInfo)
	expect(t, len(answer.PromptInfo.Tokens) == int(answer.Usage.PromptTokens), answer)
	for place, token := range answer.PromptInfo.Tokens {
		expect(t, (token.Logprob != nil) == (place > 0), token)
	}
	expect(t, answer.Timing.TimeToFirstTokenMs > 0 && answer.Timing.DecodeMs > 0, answer.Timing)
	expect(t, strings.HasPrefix(answer.Receipt.ModelDigest, "sha256:"), answer.Receipt)
	expect(t, answer.RequestId == "told-back" && answer.Model == "embedded", answer)
}

func TestConstraints(t *testing.T) {
	ctx, client := service(t)
	constraints := map[string]*llm.Constraint{
		`^[a-c]{3}$`:           {Constraint: &llm.Constraint_Regex{Regex: "[a-c]{3}"}},
		`^(yes|no)$`:           {Constraint: &llm.Constraint_Choice{Choice: &llm.Choice{Choices: []string{"yes", "no"}}}},
		`^a+b$`:                {Constraint: &llm.Constraint_Grammar{Grammar: "start: /a{1,4}/ \"b\""}},
		`(?s)^\{\s*"ok"\s*:.+`: {Constraint: &llm.Constraint_JsonSchema{JsonSchema: schema}},
		`^\{`:                  {Constraint: &llm.Constraint_JsonObject{JsonObject: true}},
	}
	for pattern, constraint := range constraints {
		answer, err := client.GenerateText(ctx, &llm.GenerateTextRequest{
			Prompt: prompt, MaxTokens: 100, Constraint: constraint,
			Sampling: &llm.Sampling{Temperature: proto.Float32(1), Seed: proto.Uint64(1)},
		})
		check(t, err)
		expect(t, regexp.MustCompile(pattern).MatchString(answer.GeneratedText), answer)
		if constraint.GetJsonSchema() != "" {
			var found struct{ Ok bool }
			check(t, json.Unmarshal([]byte(answer.GeneratedText), &found))
		}
	}
	_, err := client.GenerateText(ctx, &llm.GenerateTextRequest{
		Prompt: prompt, Constraint: &llm.Constraint{Constraint: &llm.Constraint_JsonSchema{JsonSchema: `{"type":`}},
	})
	fields := refused(t, err, codes.InvalidArgument, "INVALID_PARAMETER")
	expect(t, slices.Equal(fields, []string{"constraint.json_schema"}), fields)
}

const schema = `{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
	"additionalProperties": false}`

func TestChat(t *testing.T) {
	ctx, client := service(t)
	request := &llm.ChatRequest{
		Messages: []*llm.ChatMessage{{Role: llm.Role_ROLE_USER, Content: prompt}}, MaxTokens: 16,
	}
	answer, err := client.Chat(ctx, request)
	check(t, err)
	expect(t, answer.Message.Role == llm.Role_ROLE_ASSISTANT && answer.Message.Content != "", answer)
	stream, err := client.StreamChat(ctx, request)
	check(t, err)
	content := ""
	for _, message := range all(t, stream) {
		content += message.Message.GetContent()
	}
	expect(t, content == answer.Message.Content, content)

	request.Sampling = &llm.Sampling{Temperature: proto.Float32(1), Seed: proto.Uint64(5), N: proto.Int32(2)}
	several, err := client.Chat(ctx, request)
	check(t, err)
	expect(t, len(several.Choices) == 2 && several.Choices[1].Seed == 6, several)
	expect(t, several.Message.Content == several.Choices[0].Message.Content, several)
	_, err = client.Chat(ctx, &llm.ChatRequest{Messages: []*llm.ChatMessage{{Content: prompt}}})
	fields := refused(t, err, codes.InvalidArgument, "INVALID_PARAMETER")
	expect(t, slices.Equal(fields, []string{"messages[0].role"}), fields)

	parameters, err := structpb.NewStruct(map[string]any{"type": "object"})
	check(t, err)
	request.Tools = []*llm.Tool{{Name: "weather", Parameters: parameters}}
	_, err = client.Chat(ctx, request)
	refused(t, err, codes.FailedPrecondition, "UNSUPPORTED_PARAMETER")
}

func TestBatch(t *testing.T) {
	ctx, client := service(t)
	stream, err := client.BatchGenerateText(ctx, &llm.BatchGenerateTextRequest{
		Requests: []*llm.GenerateTextRequest{{Prompt: prompt}, {Prompt: prompt, MaxTokens: -1}, {Prompt: prompt}},
	})
	check(t, err)
	texts := map[int32]string{}
	for _, message := range all(t, stream) {
		if found := message.GetStatus(); found != nil {
			expect(t, message.Item == 1 && codes.Code(found.Code) == codes.InvalidArgument, message)
			continue
		}
		texts[message.Item] = message.GetResponse().GeneratedText
	}
	expect(t, len(texts) == 2 && texts[0] == texts[2] && texts[0] != "", texts)
}

func TestScores(t *testing.T) {
	ctx, client := service(t)
	generated, err := client.GenerateText(ctx, &llm.GenerateTextRequest{Prompt: prompt, MaxTokens: 4})
	check(t, err)
	answer, err := client.ScoreText(ctx, &llm.ScoreTextRequest{
		Prompt: prompt, Candidates: []string{generated.GeneratedText, "zzz"},
	})
	check(t, err)
	expect(t, len(answer.Scores) == 2 && answer.Scores[0].Logprob > answer.Scores[1].Logprob, answer)
	sum := 0.0
	for _, token := range answer.Scores[1].Tokens {
		sum += float64(token.GetLogprob())
	}
	expect(t, math.Abs(sum-answer.Scores[1].Logprob) < 1e-3, answer)
	answer, err = client.ScoreText(ctx, &llm.ScoreTextRequest{
		PromptTokenIds: []int32{5, 6}, CandidateTokenIds: []*llm.TokenIds{{Ids: []int32{7}}, {Ids: []int32{8, 9}}},
		TopLogprobs: 2, TokenText: true, RequestId: "scores",
	})
	check(t, err)
	expect(t, answer.RequestId == "scores" && answer.Model == "embedded", answer)
	expect(t, answer.Usage.PromptTokens == 2 && answer.Usage.CompletionTokens == 3, answer.Usage)
	token := answer.Scores[1].Tokens[1]
	expect(t, token.Id == 9 && len(token.Text) > 0 && token.TextOffset > 0, token)
	expect(t, len(token.TopLogprobs) == 2 && token.TopLogprobs[0].Text != nil, token)
}

func TestTokenizer(t *testing.T) {
	ctx, _ := service(t)
	client := llm.NewTokenizerServiceClient(connect(t, "LLM_GRPC_ADDRESS"))
	answer, err := client.Tokenize(ctx, &llm.TokenizeRequest{Input: &llm.TokenizeRequest_Text{Text: prompt}})
	check(t, err)
	var ids []int32
	for _, token := range answer.Tokens {
		ids = append(ids, token.Id)
		expect(t, 0 <= token.Start && token.Start <= token.End && int(token.End) <= len(prompt), token)
	}
	expect(t, len(ids) == int(answer.Count), answer)
	text, err := client.Detokenize(ctx, &llm.DetokenizeRequest{TokenIds: ids})
	check(t, err)
	expect(t, text.Text == prompt, text)
	count, err := client.Tokenize(ctx, &llm.TokenizeRequest{
		Input: &llm.TokenizeRequest_Chat{Chat: &llm.ChatInput{
			Messages: []*llm.ChatMessage{{Role: llm.Role_ROLE_USER, Content: prompt}},
		}},
		CountOnly: true,
	})
	check(t, err)
	expect(t, count.Count > 0 && len(count.Tokens) == 0 && count.Prompt == "", count)
	cut, err := client.Tokenize(ctx, &llm.TokenizeRequest{
		Input: &llm.TokenizeRequest_Text{Text: prompt}, AddSpecialTokens: proto.Bool(false), TruncateTokens: 2,
	})
	check(t, err)
	expect(t, cut.Count == 2 && cut.TruncatedCount > 0 && cut.Tokens[1].Id == ids[len(ids)-2], cut)
}

func TestModels(t *testing.T) {
	ctx, generator := service(t)
	client := llm.NewModelServiceClient(connect(t, "LLM_GRPC_ADDRESS"))
	var names []string
	for token := ""; ; {
		page, err := client.ListModels(ctx, &llm.ListModelsRequest{PageSize: 1, PageToken: token})
		check(t, err)
		for _, model := range page.Models {
			names = append(names, model.Name)
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	expect(t, slices.Equal(names, []string{"embedded", "second"}), names)
	second, err := client.GetModel(ctx, &llm.GetModelRequest{Name: "second"})
	check(t, err)
	model := second.Model
	expect(t, model.State == llm.ModelState_MODEL_STATE_READY && !model.IsDefault, model)
	expect(t, model.Defaults.MaxTokens == 5 && model.Defaults.PresencePenalty == 0.5, model.Defaults)
	expect(t, model.Capabilities.ChatTemplate && !model.Capabilities.Tools, model.Capabilities)
	expect(t, model.Limits.ContextTokens > model.Limits.MaxTokens && model.VocabularySize > 0, model)
	load, err := llm.NewAdminServiceClient(connect(t, "LLM_GRPC_ADMIN_ADDRESS")).GetLoad(ctx, &llm.GetLoadRequest{})
	check(t, err)
	expect(t, load.Ready && !load.Draining && len(load.Models) == 2 && load.Models[1].Name == "second", load)
	info, err := client.GetServerInfo(ctx, &llm.GetServerInfoRequest{})
	check(t, err)
	expect(t, info.DefaultModel == "embedded" && strings.HasPrefix(info.Runtime, "onnxruntime"), info)
	expect(t, info.Version != "" && info.StartTime.AsTime().Before(time.Now()), info)

	answer, err := generator.GenerateText(ctx, &llm.GenerateTextRequest{Prompt: prompt, Model: "second"})
	check(t, err)
	expect(t, answer.Model == "second" && answer.Usage.CompletionTokens <= 5, answer)
	_, err = generator.GenerateText(ctx, &llm.GenerateTextRequest{Prompt: prompt, Model: "third"})
	refused(t, err, codes.NotFound, "MODEL_NOT_FOUND")
}

func TestAdapters(t *testing.T) {
	ctx, generator := service(t)
	admin := llm.NewAdminServiceClient(connect(t, "LLM_GRPC_ADMIN_ADDRESS"))
	adapters, err := admin.ListAdapters(ctx, &llm.ListAdaptersRequest{})
	check(t, err)
	expect(t, len(adapters.Adapters) == 0 && adapters.MaxRank == 0, adapters)
	_, err = admin.UnloadAdapter(ctx, &llm.UnloadAdapterRequest{Name: "french"})
	refused(t, err, codes.NotFound, "ADAPTER_NOT_FOUND")
	_, err = generator.GenerateText(ctx, &llm.GenerateTextRequest{Prompt: prompt, Adapter: "french"})
	refused(t, err, codes.FailedPrecondition, "UNSUPPORTED_PARAMETER")
}

// LLM_GRPC_ADAPTER is an adapter's directory on the server, whose model has room for it.
func TestLoadedAdapter(t *testing.T) {
	path := os.Getenv("LLM_GRPC_ADAPTER")
	if path == "" {
		t.Skip("LLM_GRPC_ADAPTER is not set")
	}
	ctx, generator := service(t)
	admin := llm.NewAdminServiceClient(connect(t, "LLM_GRPC_ADMIN_ADDRESS"))
	loaded, err := admin.LoadAdapter(ctx, &llm.LoadAdapterRequest{Name: "go", Path: path})
	check(t, err)
	expect(t, loaded.Adapter.Name == "go" && loaded.Adapter.Rank > 0, loaded)
	_, err = admin.LoadAdapter(ctx, &llm.LoadAdapterRequest{Name: "go", Path: path})
	refused(t, err, codes.AlreadyExists, "ADAPTER_EXISTS")

	texts := map[string]string{}
	for _, name := range []string{"", "go"} {
		answer, err := generator.GenerateText(ctx, &llm.GenerateTextRequest{
			PromptTokenIds: []int32{3, 1, 4, 1, 5}, MaxTokens: 12, Adapter: name,
			Stopping: &llm.Stopping{IgnoreEos: true}, ResponseOptions: &llm.ResponseOptions{Tokens: true, Receipt: true},
		})
		check(t, err)
		expect(t, (answer.Receipt.AdapterDigest == loaded.Adapter.Digest) == (name == "go"), answer.Receipt)
		for _, token := range answer.Tokens {
			texts[name] += fmt.Sprint(token.Id, " ")
		}
	}
	expect(t, texts[""] != texts["go"], texts)
	_, err = admin.UnloadAdapter(ctx, &llm.UnloadAdapterRequest{Name: "go"})
	check(t, err)
	_, err = generator.GenerateText(ctx, &llm.GenerateTextRequest{Prompt: "a", Adapter: "go"})
	refused(t, err, codes.NotFound, "ADAPTER_NOT_FOUND")
}

func TestIdentity(t *testing.T) {
	ctx, client := service(t)
	request := &llm.GenerateTextRequest{
		Prompt: prompt, RequestId: "go-1", Priority: -1,
		Sampling: &llm.Sampling{Temperature: proto.Float32(2)},
	}
	first, err := client.GenerateText(ctx, request)
	check(t, err)
	again, err := client.GenerateText(ctx, request)
	check(t, err)
	expect(t, proto.Equal(first, again), again)
	for range 2 {
		answer, err := client.CancelGeneration(ctx, &llm.CancelGenerationRequest{RequestId: "go-2"})
		check(t, err)
		expect(t, answer.NumCancelled == 0, answer)
	}
	stream, err := client.StreamGenerateText(ctx, &llm.GenerateTextRequest{
		Prompt: prompt, MaxTokens: 200, RequestId: "go-3", Stopping: &llm.Stopping{IgnoreEos: true},
	})
	check(t, err)
	message, err := stream.Recv()
	check(t, err)
	answer, err := client.CancelGeneration(ctx, &llm.CancelGenerationRequest{RequestId: "go-3"})
	check(t, err)
	for err == nil && message.FinishReason == llm.FinishReason_FINISH_REASON_UNSPECIFIED {
		message, err = stream.Recv()
	}
	check(t, err)
	expect(t, (message.FinishReason == llm.FinishReason_FINISH_REASON_CANCELLED) == (answer.NumCancelled == 1), message)
}

func TestRefusals(t *testing.T) {
	ctx, client := service(t)
	_, err := client.GenerateText(ctx, &llm.GenerateTextRequest{
		Prompt: prompt, Sampling: &llm.Sampling{N: proto.Int32(2), Temperature: proto.Float32(0)},
	})
	fields := refused(t, err, codes.InvalidArgument, "INVALID_PARAMETER")
	expect(t, slices.Equal(fields, []string{"sampling.n"}), fields)
	expect(t, strings.Contains(status.Convert(err).Message(), "sampling.temperature"), err)
}
